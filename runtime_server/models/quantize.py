"""Eight-bit weights. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 32
ZERO_POINT = 128
"""The stored value of zero in blocks: ``MatMulNBits`` takes unsigned bytes and this as its default."""


@dataclass(frozen=True, slots=True)
class RowQuantized:
    """A weight with one scale per row."""

    values: NDArray[np.int8]
    """``[rows, columns]``"""
    scales: NDArray[np.float32]
    """``[rows]``"""


@dataclass(frozen=True, slots=True)
class BlockQuantized:
    """A weight with one scale per :data:`BLOCK` columns, which are padded with zeros to whole blocks."""

    values: NDArray[np.uint8]
    """``[rows, blocks, 32]``, with :data:`ZERO_POINT` added."""
    scales: NDArray[np.float32]
    """``[rows, blocks]``"""


def row_int8(weight: NDArray[np.float32]) -> RowQuantized:
    """Quantises ``weight [rows, columns]`` to the nearest of 255 levels per row."""
    values, scales = _symmetric(weight)
    return RowQuantized(values.astype(np.int8), scales)


def block_int8(weight: NDArray[np.float32]) -> BlockQuantized:
    """Quantises ``weight [rows, columns]`` to the nearest of 255 levels per block, as GGUF's ``Q8_0`` does."""
    rows, columns = weight.shape
    blocks = -(-columns // BLOCK)
    padded = np.zeros((rows, blocks * BLOCK), np.float32)
    padded[:, :columns] = weight
    values, scales = _symmetric(padded.reshape(rows, blocks, BLOCK))
    return BlockQuantized((values + ZERO_POINT).astype(np.uint8), scales)


def _symmetric(values: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Whole numbers from -127 to 127, and one scale per last axis."""
    scales = np.abs(values).max(axis=-1) / np.float32(127)
    # All zeros have scale 0; any divisor serves them.
    divisors = np.where(scales == 0, np.float32(1), scales)
    return np.rint(values / divisors[..., None]), scales
