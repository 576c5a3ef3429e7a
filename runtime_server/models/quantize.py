"""Whole-number weights in blocks of 32 inputs: ``w = d * q + m``, with one ``d`` and ``m`` in fp16 per block. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 32
ZERO_POINT = 128
"""The stored value of zero with 8 bits, where ``m`` is ``-ZERO_POINT * d``."""
_LEVELS = 15
"""The largest value of 4 bits."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """A weight ``[rows, columns]``, its columns padded with zeros to whole blocks."""

    bits: int
    """4 or 8."""
    values: NDArray[np.uint8]
    """``[rows, blocks, 32]``"""
    scales: NDArray[np.float16]
    """``d [rows, blocks]``"""
    offsets: NDArray[np.float16] | None
    """``m [rows, blocks]`` with 4 bits."""


def quantize(weight: NDArray[np.float32]) -> Blocks:
    """4 bits where they hold ``weight`` as it is, 8 bits otherwise.

    Weights that were published with 4 bits, as GGUF's ``Q4_0`` and ``Q4_1``, so stay what they are.
    """
    blocks = in_blocks(weight)
    return four_bits(blocks) or eight_bits(blocks)


def eight_bits(blocks: NDArray[np.float32]) -> Blocks:
    """The nearest of 255 levels from ``-max`` to ``max`` of each block, as GGUF's ``Q8_0`` has it.

    Args:
        blocks: ``[rows, blocks, 32]``
    """
    scales = (np.abs(blocks).max(axis=-1) / np.float32(127)).astype(np.float16)
    # All zeros have scale 0; any divisor serves them.
    divisors = np.where(scales == 0, np.float32(1), scales.astype(np.float32))
    values = np.clip(np.rint(blocks / divisors[..., None]), -127, 127)
    return Blocks(8, (values + ZERO_POINT).astype(np.uint8), scales, None)


def four_bits(blocks: NDArray[np.float32]) -> Blocks | None:
    """The 16 levels that ``blocks [rows, blocks, 32]`` was made of, or ``None`` where it was not.

    The levels begin at the block's least or greatest weight. Their distance is a fifteenth of the block's range
    (``Q4_1``), or an eighth of that weight (``Q4_0``).
    """
    low, high = blocks.min(axis=-1), blocks.max(axis=-1)
    candidates = [(low, (high - low) / np.float32(_LEVELS)), (low, low / np.float32(-8)), (high, high / np.float32(-8))]
    values = np.zeros(blocks.shape, np.uint8)
    scales, offsets = np.zeros(low.shape, np.float16), np.zeros(low.shape, np.float16)
    missing = np.ones(low.shape, np.bool_)
    for offset, scale in candidates:
        todo = blocks[missing]
        d, m = scale[missing].astype(np.float16), offset[missing].astype(np.float16)
        q = _levels(todo, d.astype(np.float32), m.astype(np.float32))
        restored = d.astype(np.float32)[:, None] * q + m.astype(np.float32)[:, None]
        # One rounding of fp32 apart: how the reader multiplied and added is its own business.
        fits = (np.abs(restored - todo) <= np.abs(todo).max(axis=-1, keepdims=True) * np.float32(2**-22)).all(axis=-1)
        found = missing.copy()
        found[missing] = fits
        values[found], scales[found], offsets[found] = q[fits].astype(np.uint8), d[fits], m[fits]
        missing &= ~found
        if not missing.any():
            return Blocks(4, values, scales, offsets)
    return None


def _levels(
    blocks: NDArray[np.float32], scales: NDArray[np.float32], offsets: NDArray[np.float32]
) -> NDArray[np.float32]:
    divisors = np.where(scales == 0, np.float32(1), scales)
    levels: NDArray[np.float32] = np.rint((blocks - offsets[:, None]) / divisors[:, None]).clip(0, _LEVELS)
    return levels


def in_blocks(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """``weight [rows, columns]`` as ``[rows, blocks, 32]``; zeros fill the last block."""
    rows, columns = weight.shape
    count = -(-columns // BLOCK)
    padded = np.zeros((rows, count * BLOCK), np.float32)
    padded[:, :columns] = weight
    return padded.reshape(rows, count, BLOCK)
