"""Weight formats of the linear layers.

``int8`` stores each row of a weight in blocks of 32 with one fp32 scale per block (symmetric, as GGUF's
``Q8_0``, so that such tensors keep their values). At run time ``MatMulNBits`` with accuracy level 4 quantises each
activation row in blocks of 32 as well, so a row's result does not depend on the other rows of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

QUANTIZATIONS = ("int8", "fp32")
BLOCK = 32
ZERO_POINT = 128
"""The stored value of zero: ``MatMulNBits`` takes unsigned bytes and this as its default."""


@dataclass(frozen=True, slots=True)
class BlockInt8:
    """A quantised weight of ``rows`` × ``columns``, columns padded with zeros to whole blocks."""

    values: NDArray[np.uint8]
    """``[rows, blocks, 32]``, with :data:`ZERO_POINT` added."""
    scales: NDArray[np.float32]
    """``[rows, blocks]``"""


def block_int8(weight: NDArray[np.float32]) -> BlockInt8:
    """Quantises ``weight`` ``[rows, columns]`` to the nearest of 255 levels per block."""
    rows, columns = weight.shape
    blocks = -(-columns // BLOCK)
    padded = np.zeros((rows, blocks * BLOCK), np.float32)
    padded[:, :columns] = weight
    grouped = padded.reshape(rows, blocks, BLOCK)
    scales = np.abs(grouped).max(axis=-1) / np.float32(127)
    # A block of zeros has scale 0; any divisor serves it.
    divisors = np.where(scales == 0, np.float32(1), scales)
    values = np.rint(grouped / divisors[..., None]) + ZERO_POINT
    return BlockInt8(values.astype(np.uint8), scales)


def dequantize(weight: BlockInt8) -> NDArray[np.float32]:
    """The stored weight in fp32, ``[rows, blocks * 32]``."""
    centred = weight.values.astype(np.float32) - ZERO_POINT
    return (centred * weight.scales[..., None]).reshape(len(weight.values), -1)
