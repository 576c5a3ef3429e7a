"""Queries, keys and values of a step as paged attention makes them of its inputs: apart, normed and rotated.

The kernel stores queries and keys after their norm and after they are rotated, so both are rounded then.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tests.cuda_reference.arithmetic import rms_norm
from tests.cuda_reference.paged_layout import Integers
from tests.cuda_reference.tensors import Array, wide


@dataclass(frozen=True, slots=True)
class Heads:
    """What the packed tokens of a step ask, are found by, and tell."""

    queries: Array
    """``[tokens, heads, head_size]``."""
    keys: Array
    """``[tokens, kv_heads, head_size]``."""
    values: Array
    """Likewise."""

    @classmethod
    def of(
        cls, query: Array, key: Array | None, value: Array | None, heads: int, kv_heads: int, head_size: int
    ) -> Heads:
        """Of three arrays, or of one that has them side by side. Raises ``ValueError`` for a shape that is wrong."""
        if heads % kv_heads:
            raise ValueError(f"num_heads {heads}, which should be a multiple of kv_num_heads {kv_heads}")
        if (key is None) != (value is None):
            raise ValueError("one of key and value, which come together")
        widths = (heads * head_size, kv_heads * head_size, kv_heads * head_size)
        if key is None or value is None:
            if query.shape[1:] != (sum(widths),):
                raise ValueError(f"packed queries, keys and values {query.shape}, which should be {sum(widths)} wide")
            query, key, value = np.split(query, np.cumsum(widths)[:-1], axis=1)
        parts = []
        for name, part, width in zip(("query", "key", "value"), (query, key, value), widths, strict=True):
            if part.shape != (len(query), width):
                raise ValueError(f"{name} of the shape {part.shape}, which should be {(len(query), width)}")
            parts.append(part.reshape(len(query), width // head_size, head_size))
        return cls(*parts)

    def normed(self, query_gain: Array | None, key_gain: Array | None, epsilon: float) -> Heads:
        """After the RMS norm of each head, where there is one. Raises ``ValueError`` for gains that are wrong."""
        if query_gain is None and key_gain is None:
            return self
        if query_gain is None or key_gain is None:
            raise ValueError("one of q_norm_weight and k_norm_weight, which come together")
        queries, _ = rms_norm(wide(self.queries), query_gain, epsilon)
        keys, _ = rms_norm(wide(self.keys), key_gain, epsilon)
        return replace(self, queries=queries, keys=keys)

    def rotated(self, cos: Array | None, sin: Array | None, positions: Integers, *, interleaved: bool) -> Heads:
        """After rotary embedding with tables ``[positions, rotated / 2]``. Raises ``ValueError`` for wrong ones."""
        size = self.queries.shape[2]
        if cos is None or sin is None:
            raise ValueError("do_rotary without cos_cache and sin_cache")
        if cos.ndim != 2 or cos.shape != sin.shape or 2 * cos.shape[1] > size:
            shapes = f"{cos.shape} and {sin.shape}"
            raise ValueError(f"rotary tables of the shapes {shapes}, which should be [positions, {size // 2}] at most")
        beyond = positions[positions >= len(cos)]
        if beyond.size:
            raise ValueError(f"position {beyond[0]} in rotary tables of {len(cos)}")
        queries, keys = (_rotated(x, cos[positions], sin[positions], interleaved) for x in (self.queries, self.keys))
        return replace(self, queries=queries, keys=keys)


def _rotated(x: Array, cos: Array, sin: Array, interleaved: bool) -> Array:
    values = wide(x)
    half = cos.shape[-1]
    # Pairs are neighbours, or lie half of what is rotated apart. What is behind stays as it is.
    first = slice(0, 2 * half, 2) if interleaved else slice(0, half)
    second = slice(1, 2 * half, 2) if interleaved else slice(half, 2 * half)
    a, b = values[..., first], values[..., second]
    result = values.copy()
    result[..., first] = a * wide(cos)[:, None] - b * wide(sin)[:, None]
    result[..., second] = b * wide(cos)[:, None] + a * wide(sin)[:, None]
    return result.astype(x.dtype)
