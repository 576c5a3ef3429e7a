"""A loaded model on a card: its session, its memory, and how a plan runs there.

Everything here happens on one thread: a captured graph belongs to the thread that captured it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from runtime_server.backends.base import Candidates, Floats
from runtime_server.backends.cuda_plan import StepPlan
from runtime_server.backends.cuda_runtime import CudaRuntime
from runtime_server.models.cuda_format import block_tokens, top_count
from runtime_server.models.decoder import DecoderConfig
from runtime_server.models.manifest import MODEL_FILE

logger = logging.getLogger(__name__)

PROVIDER = "CUDAExecutionProvider"
_BF16 = 16
"""``onnx.TensorProto.BFLOAT16``, without the package that nothing but conversions needs."""
_NO_GRAPH = "-1"
"""The number of a graph that is not captured."""


Results = Callable[[], Candidates]
"""Reads the candidates of the rows that are wanted. For the thread that needs them: the card waits for its own."""
_RESULTS = 3
"""Steps whose results are kept: the one that runs, the one that is read, and one between."""


class Card(Protocol):
    """Runs plans, one after the other."""

    def run(self, plan: StepPlan) -> Results:
        """Runs one step. What it returns must be called before two more have run."""
        ...

    def logits(self, rows: list[int]) -> Floats:
        """The logits of some rows of the step that ran last."""
        ...

    def close(self) -> None:
        """Frees everything."""
        ...


@dataclass(frozen=True, slots=True)
class Sizes:
    """What memory is reserved for."""

    blocks: int
    """Of the KV cache, the spare one not counted."""
    rows: int
    """Of the outputs, at most."""
    integers: int
    """Of one plan, at most."""


class CudaCard:
    """See :class:`Card`.

    Args:
        folder: of the converted model.
        config: its shape.

    Raises: what ONNX Runtime raises for a model that it cannot load, :class:`~runtime_server.backends.cuda_runtime
    .CudaError` where memory is missing.
    """

    def __init__(self, folder: Path, config: DecoderConfig, device_id: int, sizes: Sizes) -> None:
        self._device_id = device_id
        self._config = config
        self._runtime = CudaRuntime(device_id)
        try:
            self._session = self._load(folder)
            self._outputs = _Outputs(config, sizes.rows)
            self._reserve(sizes)
        except BaseException:
            self._runtime.close()
            raise
        self._bindings: dict[int, ort.IOBinding] = {}
        """By the number of the capture; 0 is for steps without one."""
        self._bounds: dict[int, NDArray[np.int32]] = {}
        """What the bindings point to."""

    def run(self, plan: StepPlan) -> Results:
        """See :meth:`Card.run`."""
        runtime, number = self._runtime, plan.capture.number if plan.capture else 0
        staged = self._staging[: len(plan.integers)]
        staged[:] = plan.integers
        runtime.upload(self._integers, staged)
        # A capture runs the model more than once, so what it reads and what it draws must not be one place.
        runtime.copy(self._previous, self._results, self._outputs.sampled_bytes)
        self._session.run_with_iobinding(self._binding(plan, number), _options(number))
        downloaded = next(self._downloads)
        runtime.download(downloaded, self._results)
        runtime.wait()
        return partial(self._outputs.candidates, downloaded, plan.rows)

    def logits(self, rows: list[int]) -> Floats:
        """See :meth:`Card.logits`."""
        width = self._config.vocab_size
        staged = self._staged_logits[: len(rows)]
        for place, row in enumerate(rows):
            self._runtime.download(staged[place], self._logits + row * width * staged.itemsize)
        self._runtime.wait()
        return staged.copy()

    def close(self) -> None:
        """See :meth:`Card.close`."""
        self._bindings.clear()
        del self._session
        self._runtime.close()

    def _load(self, folder: Path) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # An operator that silently runs on the processor would cost more than all others.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        options.add_session_config_entry("ep.cuda.fpa_intb_gemm", "1")
        provider = {
            "device_id": str(self._device_id),
            "user_compute_stream": str(self._runtime.stream),
            "enable_cuda_graph": "1",
            # Powers of two would take up to twice what is planned for.
            "arena_extend_strategy": "kSameAsRequested",
        }
        return ort.InferenceSession(folder / MODEL_FILE, options, providers=[(PROVIDER, provider)])

    def _reserve(self, sizes: Sizes) -> None:
        runtime, config = self._runtime, self._config
        self._cache_shape = (sizes.blocks + 1, block_tokens(config.head_dim), config.kv_heads, config.head_dim)
        size = 2 * int(np.prod(self._cache_shape))
        names = [f"{kind}_cache.{layer}" for layer in range(config.layers) for kind in ("key", "value")]
        self._caches = {name: runtime.allocate(size) for name in names}
        self._integers = runtime.allocate(4 * sizes.integers)
        self._staging = runtime.pinned(4 * sizes.integers).view(np.int32)
        self._previous = runtime.allocate(self._outputs.sampled_bytes)
        self._places = sizes.rows
        self._results = runtime.allocate(self._outputs.size)
        self._downloads = cycle([runtime.pinned(self._outputs.size) for _ in range(_RESULTS)])
        self._logits = runtime.allocate(4 * sizes.rows * config.vocab_size)
        self._staged_logits = runtime.pinned(4 * sizes.rows * config.vocab_size).view(np.float32)
        self._staged_logits = self._staged_logits.reshape(sizes.rows, config.vocab_size)

    def _binding(self, plan: StepPlan, number: int) -> ort.IOBinding:
        """Where the step's inputs and outputs are. For a capture this never changes."""
        binding = self._bindings.get(number)
        if binding is None:
            binding = self._bindings[number] = self._session.io_binding()
            for name, address in self._caches.items():
                self._bind_input(binding, name, _BF16, self._cache_shape, address)
            self._bind_input(binding, "previous_tokens", np.int32, (self._places,), self._previous)
            if plan.capture is not None:
                rows, bounds = plan.shape.rows, plan.bounds
                logger.info("capturing %d rows of %d to %d tokens", rows, bounds.least, bounds.longest)
                self._bind_step(binding, plan, number)
        if plan.capture is None:
            self._bind_step(binding, plan, number)
        return binding

    def _bind_step(self, binding: ort.IOBinding, plan: StepPlan, number: int) -> None:
        shape = plan.shape
        for name, size in shape.sizes().items():
            self._bind_input(binding, name, np.int32, size, self._integers + 4 * shape.offsets[name])
        bounds = self._bounds[number] = plan.bounds.array()
        binding.bind_input("attention_bounds", "cpu", 0, bounds.dtype, bounds.shape, bounds.ctypes.data)
        for name, (kind, size, offset) in self._outputs.layout(shape.rows).items():
            binding.bind_output(name, "cuda", self._device_id, kind, size, self._results + offset)
        size = (shape.rows, self._config.vocab_size)
        binding.bind_output("logits", "cuda", self._device_id, np.float32, size, self._logits)

    def _bind_input(self, binding: ort.IOBinding, name: str, kind: Any, shape: tuple[int, ...], address: int) -> None:
        binding.bind_input(name, "cuda", self._device_id, kind, shape, address)


class _Outputs:
    """How the outputs but for the logits lie in one piece of memory, so that one copy brings them over."""

    def __init__(self, config: DecoderConfig, rows: int) -> None:
        self._top = top_count(config)
        self.sampled_bytes = 4 * rows
        sizes = {"sampled": 4 * rows, "top_ids": 8 * rows * self._top, "top_values": 4 * rows * self._top}
        sizes["logsumexp"] = 4 * rows
        self._offsets: dict[str, int] = {}
        self.size = 0
        """Bytes in all."""
        for name, size in sizes.items():
            self._offsets[name] = self.size
            self.size += -(-size // 256) * 256

    def layout(self, rows: int) -> dict[str, tuple[type[np.generic], tuple[int, ...], int]]:
        """Type, shape and place of each output with ``rows`` rows."""
        return {
            "sampled": (np.int32, (rows,), self._offsets["sampled"]),
            "top_ids": (np.int64, (rows, self._top), self._offsets["top_ids"]),
            "top_values": (np.float32, (rows, self._top), self._offsets["top_values"]),
            "logsumexp": (np.float32, (rows, 1), self._offsets["logsumexp"]),
        }

    def candidates(self, memory: NDArray[np.uint8], rows: int) -> Candidates:
        """What came over, of the first ``rows``."""
        found: dict[str, Any] = {}
        for name, (kind, size, offset) in self.layout(rows).items():
            count = int(np.prod(size))
            found[name] = np.frombuffer(memory, kind, count, offset).reshape(size).copy()
        return Candidates(found["top_ids"], found["top_values"], found["logsumexp"][:, 0])


def _options(number: int) -> ort.RunOptions:
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(number) if number else _NO_GRAPH)
    return options
