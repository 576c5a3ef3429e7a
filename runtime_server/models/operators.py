"""What a decoder's graph is made of on one kind of device: the parts that :mod:`runtime_server.models.graph` joins."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

Weight = NDArray[np.float32]


class Operators(Protocol):
    """Adds nodes. Methods return the name of the value that they add; all values are packed rows."""

    def embedding(self, table: Weight) -> str:
        """The rows of ``table [vocab_size, hidden]`` for the step's tokens."""
        ...

    def linear(
        self,
        rows: str,
        weight: Weight,
        output: str,
        *,
        norm: str = "",
        bias: Weight | None = None,
        residual: str = "",
    ) -> str:
        """``rows`` times ``weight [outputs, inputs]``.

        Args:
            norm: name of the weight of an RMS norm that ``rows`` go through first.
            bias: ``[outputs]``, added to the product.
            residual: rows that are added to the product.
        """
        ...

    def gated(self, rows: str, gate: Weight, up: Weight, output: str, *, norm: str) -> str:
        """``silu(normed @ gate) * (normed @ up)``, as wide as :meth:`linear` takes it with the down projection."""
        ...

    def attention(self, qkv: str, name: str, layer: int) -> str:
        """Causal attention of ``qkv [rows, (heads + 2 * kv_heads) * head_dim]``, which it rotates and caches."""
        ...

    def head(self, rows: str, weight: Weight | None, *, norm: str) -> None:
        """The step's outputs, from the rows whose logits are wanted. The embedding's table where ``weight`` is None."""
        ...

    def inputs(self) -> list[onnx.ValueInfoProto]:
        """What a step is fed with."""
        ...

    def outputs(self) -> list[onnx.ValueInfoProto]:
        """What it gives back."""
        ...


def rotary_tables(inv_freq: tuple[float, ...], positions: int, scale: float) -> tuple[Weight, Weight]:
    """Cosines and sines ``[positions, head_dim / 2]``, times ``scale``."""
    angles = np.outer(np.arange(positions, dtype=np.float64), np.array(inv_freq, np.float64))
    return (np.cos(angles) * scale).astype(np.float32), (np.sin(angles) * scale).astype(np.float32)
