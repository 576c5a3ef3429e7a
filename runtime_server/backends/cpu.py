"""Runs the decoder on ONNX Runtime's CPU provider.

A step is one call for all sequences that decode, and one call for each prompt chunk. Prompt chunks could share
the decodes' call, but they would have to be padded to a common rectangle for attention. On a CPU a chunk is bound by
arithmetic, so sharing saves next to nothing, and a prompt that is always computed alone has the same bits whatever
else runs.

The KV cache is one arena per layer, bound in place as past and present. A binding covers a run of slots, and any
run is legal because slots are the outermost axis.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, NoSuchFile

from runtime_server.backends.base import Chunk
from runtime_server.models.decoder import DecoderConfig
from runtime_server.models.errors import PullError
from runtime_server.models.graph import MODEL_FILE

logger = logging.getLogger(__name__)

_UNREADABLE = (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, NoSuchFile)

KV_DTYPE = np.dtype(np.float32)


def kv_bytes_per_token(config: DecoderConfig) -> int:
    """Bytes of keys and values that one token of one sequence takes."""
    return 2 * config.layers * config.kv_heads * config.head_dim * KV_DTYPE.itemsize


class CpuBackend:
    """See :class:`runtime_server.backends.base.Backend`.

    Args:
        folder: of the converted model.
        config: its shape.
        slots: sequences that run at the same time.
        max_tokens: tokens that each of them may hold.
        prefill_chunk: the longest chunk that :meth:`run` will be given.
        threads: of ONNX Runtime; 0 means one per physical core.

    Raises: ``PullError`` where ``folder`` holds no model that ONNX Runtime can read.
    """

    device = "cpu"

    def __init__(
        self, folder: Path, config: DecoderConfig, *, slots: int, max_tokens: int, prefill_chunk: int, threads: int
    ) -> None:
        self.slots = slots
        self.max_tokens = max_tokens
        # GroupQueryAttention wants room for the whole chunk after the tokens that are there.
        capacity = max_tokens + prefill_chunk
        shape = (slots, config.kv_heads, capacity, config.head_dim)
        # Untouched pages of these arrays take no memory: the system maps them when they are written first.
        self._arena = {
            f"{kind}.{layer}": np.empty(shape, KV_DTYPE) for layer in range(config.layers) for kind in ("key", "value")
        }
        self.kv_cache_bytes = sum(cache.nbytes for cache in self._arena.values())
        self._session = _session(folder / MODEL_FILE, threads)
        self._bindings: dict[tuple[int, int], ort.IOBinding] = {}
        self._logits = np.empty((slots + 1, config.vocab_size), np.float32)

    def run(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """See :meth:`runtime_server.backends.base.Backend.run`."""
        decodes = [i for i, chunk in enumerate(chunks) if len(chunk.token_ids) == 1]
        prefills = [i for i, chunk in enumerate(chunks) if len(chunk.token_ids) > 1]
        rows: list[int] = []
        if decodes:
            width = 1 + max(chunks[i].slot for i in decodes)
            rows += self._call([chunks[i] for i in decodes], decodes, 0, width, len(rows))
        for i in prefills:
            rows += self._call([chunks[i]], [i], chunks[i].slot, 1, len(rows))
        logits = self._logits[: len(rows)]
        return logits if rows == sorted(rows) else logits[np.argsort(rows)]

    def close(self) -> None:
        """Frees weights and arena."""
        self._bindings.clear()
        self._arena.clear()
        del self._session

    def _call(self, chunks: list[Chunk], order: list[int], first_slot: int, width: int, done: int) -> list[int]:
        """One call over ``width`` slots from ``first_slot``. Returns ``order`` of the rows that it wrote."""
        length = len(chunks[0].token_ids)
        places = np.array([chunk.slot - first_slot for chunk in chunks])
        starts = np.array([chunk.start for chunk in chunks])
        packed = np.arange(len(chunks) * length).reshape(len(chunks), length)
        query_rows = np.zeros((width, length), np.int64)
        query_rows[places] = packed
        seqlens_k = np.zeros(width, np.int32)
        seqlens_k[places] = starts + length - 1
        query_seqlens = np.zeros(width, np.int32)
        query_seqlens[places] = length
        wanted = [i for i, chunk in enumerate(chunks) if chunk.wants_logits]
        inputs = {
            "input_ids": np.array([chunk.token_ids for chunk in chunks], np.int64).reshape(-1),
            "query_rows": query_rows,
            "packed_rows": (places[:, None] * length + np.arange(length)).reshape(-1),
            "seqlens_k": seqlens_k,
            "query_seqlens": query_seqlens,
            "total_sequence_length": np.array(seqlens_k.max() + 1, np.int32),
            "logit_rows": packed[wanted, -1],
        }
        binding = self._binding(first_slot, width)
        for name, value in inputs.items():
            binding.bind_cpu_input(name, value)
        _bind_output(binding, "logits", self._logits[done : done + len(wanted)])
        self._session.run_with_iobinding(binding)
        return [order[i] for i in wanted]

    def _binding(self, first_slot: int, width: int) -> ort.IOBinding:
        binding = self._bindings.get((first_slot, width))
        if binding is None:
            binding = self._session.io_binding()
            for name, cache in self._arena.items():
                slots = cache[first_slot : first_slot + width]
                binding.bind_input(f"past_{name}", "cpu", 0, slots.dtype, slots.shape, slots.ctypes.data)
                _bind_output(binding, f"present_{name}", slots)
            self._bindings[first_slot, width] = binding
        return binding


def _bind_output(binding: ort.IOBinding, name: str, array: NDArray[np.float32]) -> None:
    binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


def _session(path: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except _UNREADABLE as error:
        logger.error("ONNX Runtime cannot read %s: %s", path, error)
        raise PullError("The stored model cannot be read.", hint="pull it again with --force") from error
