"""Calls the native sampler: one pass over each row's logits, whatever its options."""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Callable
from collections.abc import Sequence as Rows

import numpy as np
from numpy.typing import NDArray

from runtime_server import native

_ROW = struct.Struct("PQddfiII")
"""``Row`` of ``sampling.h``."""


def packed_row(
    *, allowed: int, seed: int, top_p: float, min_p: float, scale: float, top_k: int, choice: int, position: int
) -> bytes:
    """What decides one row's token, besides its logits.

    Args:
        allowed: the address of a bit per token, the lowest first; 0 where every token may be drawn.
        seed: 64 bits. With ``choice`` and ``position``, below 2**32, it is the place in the distribution that is drawn.
        scale: the inverse of the temperature; 0 for the likeliest token.
    """
    return _ROW.pack(allowed, seed, top_p, min_p, scale, top_k, choice, position)


def draw(logits: NDArray[np.float32], rows: Rows[bytes]) -> list[int]:
    """One token id per row. Other threads may use the interpreter meanwhile.

    A logit that is not a number counts as minus infinity.

    Args:
        logits: ``[rows, vocab_size]``, contiguous, with at least one token. Read only.
        rows: of :func:`packed_row`, as many as logits has rows.
    """
    count, vocab_size = logits.shape
    if logits.dtype != np.float32 or not logits.flags.c_contiguous or count != len(rows) or not vocab_size:
        raise ValueError(f"cannot draw {len(rows)} tokens from {logits.dtype} logits {logits.shape}")
    tokens = (ctypes.c_int64 * count)()
    _sample()(logits.ctypes.data, count, vocab_size, b"".join(rows), tokens)
    return list(tokens)


@functools.cache
def _sample() -> Callable[..., None]:
    function = ctypes.CDLL(str(native.library())).mantler_sample
    function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_char_p, ctypes.c_void_p]
    function.restype = None
    sample: Callable[..., None] = function
    return sample
