"""How linear layers are stored and computed. In every format a result depends on its own row only, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from runtime_server.models.nodes import CONTRIB, Nodes
from runtime_server.models.quantize import BLOCK, block_int8, row_int8
from runtime_server.models.rotation import mixing_matrix

NORMED_RANGE = 4.2
"""Largest activation after a norm that :class:`RowInt8` represents. Rows have unit RMS and are nearly normal."""
_TINY = 1e-20

Weight = NDArray[np.float32]


class Rows(Enum):
    """Where the input of a linear layer comes from."""

    NORMED = "normed"
    """A norm without a weight of its own: unit RMS."""
    ATTENTION = "attention"
    GATED = "gated"
    """The MLP's inner activation."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """An input that several linear layers share."""

    name: str
    scale: str = ""
    """Name of the scale per row ``[T, 1]``, where there is one."""


class LinearFormat(Protocol):
    """Adds linear layers to a graph."""

    def prepare(self, nodes: Nodes, rows: str, kind: Rows, width: int) -> Prepared:
        """Makes the input ``rows [T, width]`` ready."""
        ...

    def apply(self, nodes: Nodes, rows: Prepared, output: str, weight: Weight) -> str:
        """``rows`` times the transpose of ``weight [out, in]``; returns ``output``."""
        ...


class Fp32:
    """Weights and arithmetic in fp32."""

    def prepare(self, nodes: Nodes, rows: str, kind: Rows, width: int) -> Prepared:
        """Nothing to do."""
        return Prepared(rows)

    def apply(self, nodes: Nodes, rows: Prepared, output: str, weight: Weight) -> str:
        """One ``MatMul``."""
        return nodes.add("MatMul", [rows.name, nodes.constant(f"{output}/weight", weight.T)], output)


class BlockInt8:
    """Eight bits per weight and per activation, with one scale per 32 inputs. Fast for few rows."""

    def prepare(self, nodes: Nodes, rows: str, kind: Rows, width: int) -> Prepared:
        """Nothing to do: the operator quantises its input."""
        return Prepared(rows)

    def apply(self, nodes: Nodes, rows: Prepared, output: str, weight: Weight) -> str:
        """One ``MatMulNBits`` with integer arithmetic (accuracy level 4)."""
        packed = block_int8(weight)
        values = nodes.constant(f"{output}/weight", packed.values)
        scales = nodes.constant(f"{output}/scales", packed.scales)
        attributes = {"N": weight.shape[0], "K": weight.shape[1], "bits": 8, "block_size": BLOCK, "accuracy_level": 4}
        return nodes.add("MatMulNBits", [rows.name, values, scales], output, domain=CONTRIB, **attributes)


class RowInt8:
    """Eight bits per weight, one scale per output; eight bits per activation, one scale per row. Fast for many rows.

    For weights in the basis of :mod:`runtime_server.models.rotation`. Products add up exactly in 32-bit integers.
    Activations are unsigned with the zero point 128, as the fast kernels want them.
    """

    def prepare(self, nodes: Nodes, rows: str, kind: Rows, width: int) -> Prepared:
        """Quantises: with a constant scale after a norm, with the row's own largest value elsewhere."""
        quantized = f"{rows}/quantized"
        zero_point = nodes.shared("zero_point", 128, np.uint8)
        if kind is Rows.NORMED:
            scale = nodes.shared("normed_scale", NORMED_RANGE / 127, np.float32)
            return Prepared(nodes.add("QuantizeLinear", [rows, scale, zero_point], quantized))
        if kind is Rows.GATED:
            rows = self._mix(nodes, rows, width)
        magnitudes = nodes.add("Abs", [rows], f"{rows}/magnitudes")
        axis = nodes.shared("last_axis", [1], np.int64)
        largest = nodes.add("ReduceMax", [magnitudes, axis], f"{rows}/largest", keepdims=1)
        # A row of zeros must not divide by zero.
        largest = nodes.add("Max", [largest, nodes.shared("tiny", _TINY, np.float32)], f"{rows}/scale")
        unit = nodes.add("Div", [rows, largest], f"{rows}/unit")
        scale = nodes.shared("unit_scale", 1 / 127, np.float32)
        return Prepared(nodes.add("QuantizeLinear", [unit, scale, zero_point], quantized), largest)

    def apply(self, nodes: Nodes, rows: Prepared, output: str, weight: Weight) -> str:
        """One integer product that scales its columns, and the rows' scales after it."""
        packed = row_int8(weight)
        values = nodes.constant(f"{output}/weight", packed.values.T)
        scales = nodes.constant(f"{output}/scales", packed.scales)
        row_scale = "unit_scale" if rows.scale else "normed_scale"
        product = f"{output}/product" if rows.scale else output
        nodes.add("MatMulIntegerToFloat", [rows.name, values, row_scale, scales, "zero_point"], product, domain=CONTRIB)
        return nodes.add("Mul", [product, rows.scale], output) if rows.scale else output

    def _mix(self, nodes: Nodes, rows: str, width: int) -> str:
        matrix = mixing_matrix(width)
        by_block = nodes.shared("by_block", [-1, width // len(matrix), len(matrix)], np.int64)
        by_row = nodes.shared("by_row", [-1, width], np.int64)
        blocks = nodes.add("Reshape", [rows, by_block], f"{rows}/blocks")
        mixed = nodes.add("MatMul", [blocks, nodes.shared("mixing", matrix, np.float32)], f"{rows}/mixed_blocks")
        return nodes.add("Reshape", [mixed, by_row], f"{rows}/mixed")
