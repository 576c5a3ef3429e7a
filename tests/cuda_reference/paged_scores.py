"""How much the queries of paged attention make of keys: the softmax of their products, of what each query sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.cuda_reference.paged_layout import Integers
from tests.cuda_reference.tensors import Floats


@dataclass(frozen=True, slots=True)
class Scores:
    """How much a query makes of a key."""

    scale: float
    softcap: float
    """0 is none."""
    window: int
    """Tokens that a query sees, itself among them; -1 is all."""
    sinks: Floats | None
    """``[kv_heads, group, 1, 1]``."""

    def __post_init__(self) -> None:
        if self.window == 0 or self.window < -1:
            raise ValueError(f"local_window_size {self.window}, which should be positive, or -1")

    def first_seen(self, position: int) -> int:
        """The first position that a query sees."""
        return max(0, position - self.window + 1) if self.window > 0 else 0

    def shares(self, queries: Floats, keys: Floats, asked: Integers, seen: Integers) -> Floats:
        """What each query takes of each value, ``[kv_heads, group, queries, keys]``; with a sink, less than 1 in all.

        Args:
            queries: ``[queries, kv_heads, group, head_size]``, at the positions ``asked``.
            keys: ``[keys, kv_heads, head_size]``, at the positions ``seen``.
        """
        scores: Floats = np.einsum("qkgd,skd->kgqs", queries, keys) * np.float32(self.scale)
        if self.softcap:
            scores = np.float32(self.softcap) * np.tanh(scores / np.float32(self.softcap))
        ages = asked[:, None] - seen
        visible = (ages >= 0) & ((ages < self.window) | (self.window < 0))
        scores = np.where(visible, scores, np.float32(-np.inf))
        sinks = np.float32(-np.inf) if self.sinks is None else self.sinks
        peaks = np.maximum(scores.max(axis=-1, keepdims=True), sinks)
        masses = np.exp(scores - peaks)
        result: Floats = masses / (masses.sum(axis=-1, keepdims=True) + np.exp(sinks - peaks))
        return result
