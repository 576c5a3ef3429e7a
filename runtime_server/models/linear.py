"""How a linear layer's weight lies in the file: in the order in which the native kernels read it.

``runtime_server/native/linear.h`` describes the layout. Formats:

========  ==========================================================================================================
``int8``  whole numbers in blocks of 32 inputs; 4 bits where these hold the published weight as it is, 8 bits otherwise
``fp32``  as it is
========  ==========================================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime_server.models.quantize import BLOCK, Blocks, in_blocks, quantize

PANEL = 16
"""Outputs that are computed side by side."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight ready for the kernels."""

    bits: int
    """4, 8 or 32."""
    out_features: int
    in_features: int
    data: NDArray[np.uint8]
    """One dimension."""


def pack(weight: NDArray[np.float32], quantization: str) -> Packed:
    """Packs ``weight [outputs, inputs]``; ``quantization`` is ``int8`` or ``fp32``."""
    outputs, inputs = weight.shape
    padded = np.zeros((-(-outputs // PANEL) * PANEL, inputs), np.float32)
    padded[:outputs] = weight
    if quantization == "fp32":
        return Packed(32, outputs, inputs, _fp32_panels(padded))
    blocks = quantize(padded)
    return Packed(blocks.bits, outputs, inputs, _whole_number_panels(blocks))


def interleaved(gate: NDArray[np.float32], up: NDArray[np.float32]) -> NDArray[np.float32]:
    """Panels of ``gate`` and ``up [outputs, inputs]`` in turns, as the gated layer wants them; zeros fill the last."""
    outputs, inputs = gate.shape
    panels = -(-outputs // PANEL)
    both = np.zeros((2, panels * PANEL, inputs), np.float32)
    both[0, :outputs], both[1, :outputs] = gate, up
    return both.reshape(2, panels, PANEL, inputs).swapaxes(0, 1).reshape(-1, inputs)


def _fp32_panels(weight: NDArray[np.float32]) -> NDArray[np.uint8]:
    blocks = in_blocks(weight)
    panels = blocks.reshape(-1, PANEL, blocks.shape[1] * BLOCK).swapaxes(1, 2)
    return np.ascontiguousarray(panels).view(np.uint8).reshape(-1)


def _whole_number_panels(blocks: Blocks) -> NDArray[np.uint8]:
    rows, count, _ = blocks.values.shape
    panels = rows // PANEL
    # [panel, block, group of four inputs, output, input of the group]
    values = blocks.values.reshape(panels, PANEL, count, BLOCK // 4, 4).transpose(0, 2, 3, 1, 4)
    if blocks.bits == 4:
        values = values[:, :, 0::2] | values[:, :, 1::2] << np.uint8(4)
    parts = [_by_panel(blocks.scales)]
    if blocks.offsets is not None:
        parts.append(_by_panel(blocks.offsets))
    parts.append(values.reshape(panels, count, -1))
    return np.concatenate(parts, axis=-1).reshape(-1)


def _by_panel(numbers: NDArray[np.float16]) -> NDArray[np.uint8]:
    """``[rows, blocks]`` to bytes ``[panels, blocks, 32]``."""
    rows, count = numbers.shape
    panels = np.ascontiguousarray(numbers.reshape(rows // PANEL, PANEL, count).swapaxes(1, 2))
    return panels.view(np.uint8).reshape(rows // PANEL, count, 2 * PANEL)
