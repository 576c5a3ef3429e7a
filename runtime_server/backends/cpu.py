"""Runs the decoder on the processor: ONNX Runtime with our own operators.

A step is one call over the packed rows of all its chunks. Every row's arithmetic is the same whatever else runs, so a
token's logits depend on the tokens before it only, bit for bit.
"""

from __future__ import annotations

import logging
import math
import mmap
from collections.abc import Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from runtime_server import native
from runtime_server.backends.base import BlockingBackend, Chunk
from runtime_server.backends.faults import UNREADABLE, damaged, unreadable
from runtime_server.models.cpu_format import BLOCK_TOKENS
from runtime_server.models.decoder import DecoderConfig
from runtime_server.models.manifest import MODEL_FILE

logger = logging.getLogger(__name__)

KV_DTYPE = np.dtype(np.uint16)
"""The bits of bf16, which numpy has no type for."""


class CpuBackend(BlockingBackend):
    """See :class:`runtime_server.backends.base.Backend`.

    Args:
        folder: of the converted model.
        config: its shape.
        blocks: of the KV cache.
        max_batch: chunks of one step, at most.
        threads: of ONNX Runtime; 0 means one per physical core. The first backend decides for its process.

    Raises: ``PullError`` where ``folder`` holds no model that ONNX Runtime can read, ``MantlerError`` where the native
    operators cannot be loaded.
    """

    device = "cpu"
    block_tokens = BLOCK_TOKENS

    def __init__(self, folder: Path, config: DecoderConfig, *, blocks: int, max_batch: int, threads: int) -> None:
        self.blocks = blocks
        self._cache = _reserved((blocks, config.layers, config.kv_heads, 2, BLOCK_TOKENS * config.head_dim))
        self.kv_cache_bytes = self._cache.nbytes
        _start_threads(threads)
        self._session = _session(folder / MODEL_FILE)
        self._binding = self._session.io_binding()
        self._binding.bind_input("kv_cache", "cpu", 0, KV_DTYPE, self._cache.shape, self._cache.ctypes.data)
        self._logits = np.empty((max_batch, config.vocab_size), np.float32)
        self._try(folder)

    def run(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """See :meth:`runtime_server.backends.base.BlockingBackend.run`."""
        ends = list(accumulate(len(chunk.token_ids) for chunk in chunks))
        wanted = [end - 1 for end, chunk in zip(ends, chunks, strict=True) if chunk.wants_logits]
        width = max(len(chunk.block_ids) for chunk in chunks)
        table = np.zeros((len(chunks), width), np.int32)
        for row, chunk in zip(table, chunks, strict=True):
            row[: len(chunk.block_ids)] = chunk.block_ids
        inputs: dict[str, NDArray[Any]] = {
            "input_ids": np.fromiter(chain.from_iterable(chunk.token_ids for chunk in chunks), np.int64, ends[-1]),
            "row_starts": np.array([0, *ends], np.int32),
            "past_tokens": np.array([chunk.start for chunk in chunks], np.int32),
            "block_table": table,
            "logit_rows": np.array(wanted, np.int64),
        }
        for name, value in inputs.items():
            self._binding.bind_cpu_input(name, value)
        logits = self._logits[: len(wanted)]
        self._binding.bind_output("logits", "cpu", 0, logits.dtype, logits.shape, logits.ctypes.data)
        self._session.run_with_iobinding(self._binding)
        return logits

    def _try(self, folder: Path) -> None:
        """Runs one token: a damaged model is an error now, not at somebody's first request."""
        try:
            logits = self.run([Chunk([0], 0, [0], True)])
        except (*UNREADABLE, RuntimeError) as error:  # what a call over a binding raises
            raise unreadable(folder / MODEL_FILE, error) from error
        if not np.isfinite(logits).all():
            raise damaged()

    def close(self) -> None:
        """Frees weights and cache."""
        del self._binding, self._session, self._cache


def _reserved(shape: tuple[int, ...]) -> NDArray[np.uint16]:
    """Zeros that take memory only where they are written.

    numpy asks for huge pages: the first tokens of a sequence would wait for the system to clear megabytes for each
    block, and a cache that is little used would take more memory than it holds.
    """
    count = math.prod(shape)
    memory = mmap.mmap(-1, max(count * KV_DTYPE.itemsize, 1))
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, KV_DTYPE, count).reshape(shape)


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
    options.use_per_session_threads = False
    options.register_custom_ops_library(str(native.library()))
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except UNREADABLE as error:
        raise unreadable(path, error) from error
