"""Runs the decoder on ONNX Runtime's CPU provider.

A step is one call for all sequences that decode, and one call for each prompt chunk. Prompt chunks could share
the decodes' call, but they would have to be padded to a common rectangle for attention. On a CPU a chunk is bound by
arithmetic, so sharing saves next to nothing, and a prompt that is always computed alone has the same bits whatever
else runs. It also lets prompts run on a model of their own, whose weights are laid out for many rows.

The KV cache is one arena per layer, bound in place as past and present. A binding covers a run of slots, and any
run is legal because slots are the outermost axis.
"""

from __future__ import annotations

import logging
import math
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, NoSuchFile

from runtime_server.backends.base import Chunk
from runtime_server.backends.processor import integer_products_are_exact
from runtime_server.models.decoder import DecoderConfig
from runtime_server.models.errors import PullError
from runtime_server.models.graph import MODEL_FILE, PREFILL_FILE

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
        threads: of ONNX Runtime; 0 means one per physical core. The first backend decides for its process.

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
        self._arena = {
            f"{kind}.{layer}": _reserved(shape) for layer in range(config.layers) for kind in ("key", "value")
        }
        self.kv_cache_bytes = sum(cache.nbytes for cache in self._arena.values())
        _start_threads(threads)
        self._decode = _Calls(_session(folder / MODEL_FILE), self._arena)
        self._prefill = self._decode
        if (folder / PREFILL_FILE).exists():
            if integer_products_are_exact():
                self._prefill = _Calls(_session(folder / PREFILL_FILE), self._arena)
            else:
                logger.warning("this processor has no VNNI instructions; prompts run on the slower model for decodes")
        self._logits = np.empty((slots + 1, config.vocab_size), np.float32)

    def run(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """See :meth:`runtime_server.backends.base.Backend.run`."""
        decodes = [i for i, chunk in enumerate(chunks) if len(chunk.token_ids) == 1]
        prefills = [i for i, chunk in enumerate(chunks) if len(chunk.token_ids) > 1]
        rows: list[int] = []
        if decodes:
            width = 1 + max(chunks[i].slot for i in decodes)
            rows += self._call(self._decode, [chunks[i] for i in decodes], decodes, 0, width, len(rows))
        for i in prefills:
            rows += self._call(self._prefill, [chunks[i]], [i], chunks[i].slot, 1, len(rows))
        logits = self._logits[: len(rows)]
        return logits if rows == sorted(rows) else logits[np.argsort(rows)]

    def close(self) -> None:
        """Frees weights and arena."""
        del self._decode, self._prefill
        self._arena.clear()

    def _call(
        self, calls: _Calls, chunks: list[Chunk], order: list[int], first_slot: int, width: int, done: int
    ) -> list[int]:
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
        inputs: dict[str, NDArray[Any]] = {
            "input_ids": np.array([chunk.token_ids for chunk in chunks], np.int64).reshape(-1),
            "query_rows": query_rows,
            "packed_rows": (places[:, None] * length + np.arange(length)).reshape(-1),
            "seqlens_k": seqlens_k,
            "query_seqlens": query_seqlens,
            "total_sequence_length": np.array(seqlens_k.max() + 1, np.int32),
            "logit_rows": packed[wanted, -1],
        }
        calls.run(first_slot, width, inputs, self._logits[done : done + len(wanted)])
        return [order[i] for i in wanted]


class _Calls:
    """A session, and its bindings to the arena. A binding is made once for each run of slots.

    Args:
        arena: a cache ``[slots, kv_heads, capacity, head_dim]`` by name: ``key.N``, ``value.N``.
    """

    def __init__(self, session: ort.InferenceSession, arena: dict[str, NDArray[np.float32]]) -> None:
        self._session = session
        self._arena = arena
        self._bindings: dict[tuple[int, int], ort.IOBinding] = {}

    def run(self, first_slot: int, width: int, inputs: dict[str, NDArray[Any]], logits: NDArray[np.float32]) -> None:
        """Runs ``width`` slots from ``first_slot`` and writes ``logits``."""
        binding = self._binding(first_slot, width)
        for name, value in inputs.items():
            binding.bind_cpu_input(name, value)
        _bind_output(binding, "logits", logits)
        self._session.run_with_iobinding(binding)

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


def _reserved(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Zeros that take memory only where they are written.

    numpy asks for huge pages, and a sequence touches a few kilobytes in each of hundreds of places: with huge pages its
    first tokens would wait for the system to clear hundreds of megabytes.
    """
    count = math.prod(shape)
    memory = mmap.mmap(-1, max(count * KV_DTYPE.itemsize, 1))
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, KV_DTYPE, count).reshape(shape)


def _bind_output(binding: ort.IOBinding, name: str, array: NDArray[np.float32]) -> None:
    binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


_started: list[int] = []
"""The size of the process's thread pool, once it runs."""


def _start_threads(threads: int) -> None:
    """Makes the threads that all sessions of this process share. Their number cannot change later."""
    if not _started:
        ort.set_global_thread_pool_sizes(threads, 1)
        _started.append(threads)
    elif _started != [threads]:
        logger.warning("this process computes with the threads it started with (%d); asked for %d", *_started, threads)


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # Prefill and decode take turns; with a pool each, the threads of the one that waits would spin against the other's.
    options.use_per_session_threads = False
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except _UNREADABLE as error:
        logger.error("ONNX Runtime cannot read %s: %s", path, error)
        raise PullError("The stored model cannot be read.", hint="pull it again with --force") from error
