"""Sequences whose tokens go through paged attention in any batches, and what dense attention makes of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.cuda_reference.paged_attention import paged_attention
from tests.cuda_reference.tensors import Array

Doubles = NDArray[np.float64]
BLOCK = 16


@dataclass(frozen=True)
class Shape:
    """The sizes and options of an attention."""

    kv_heads: int = 2
    group: int = 1
    head_size: int = 8
    window: int = -1
    scale: float = 0.0
    softcap: float = 0.0
    rotated: int = 0
    """Elements of a head that are rotated."""
    interleaved: bool = False
    norms: bool = False
    sinks: bool = False

    @property
    def heads(self) -> int:
        """Of queries."""
        return self.kv_heads * self.group

    @property
    def attributes(self) -> dict[str, Any]:
        """As the operator takes them."""
        return {
            "num_heads": self.heads,
            "kv_num_heads": self.kv_heads,
            "scale": self.scale,
            "softcap": self.softcap,
            "local_window_size": self.window,
            "do_rotary": int(self.rotated > 0),
            "rotary_interleaved": int(self.interleaved),
            "qk_norm_epsilon": 1e-3,
        }


@dataclass
class Sequences:
    """Tokens of some sequences, of which some are in the caches already. Slots that nobody wrote hold NaN."""

    shape: Shape
    lengths: tuple[int, ...]
    seed: int = 0
    kind: Any = np.float32
    qkv: list[Array] = field(init=False)
    """Of each sequence ``[length, (heads + 2 * kv_heads) * head_size]``."""
    past: NDArray[np.int32] = field(init=False)
    table: NDArray[np.int32] = field(init=False)
    """In shuffled blocks."""
    caches: tuple[Array, Array] = field(init=False)
    optional: dict[str, Array] = field(init=False)
    """Inputs behind the block table by name."""

    def __post_init__(self) -> None:
        shape, random = self.shape, np.random.default_rng(self.seed)
        inner = (shape.heads + 2 * shape.kv_heads) * shape.head_size
        self.qkv = [random.standard_normal((length, inner)).astype(self.kind) for length in self.lengths]
        self.past = np.zeros(len(self.lengths), np.int32)
        width, batch = -(-max(self.lengths) // BLOCK), len(self.lengths)
        blocks = batch * width + 2
        self.table = random.permutation(blocks)[: batch * width].reshape(batch, width).astype(np.int32)
        size = (blocks, BLOCK, shape.kv_heads, shape.head_size)
        self.caches = np.full(size, np.nan, self.kind), np.full(size, np.nan, self.kind)
        self.optional = {}
        if shape.rotated:
            angles = np.outer(np.arange(max(self.lengths)), 0.3 ** np.arange(shape.rotated // 2))
            self.optional |= {"cos": np.cos(angles).astype(self.kind), "sin": np.sin(angles).astype(self.kind)}
        if shape.sinks:
            self.optional["sink"] = random.standard_normal(shape.heads).astype(self.kind)
        if shape.norms:
            for name in ("q_norm", "k_norm"):
                self.optional[name] = random.uniform(0.5, 2, shape.head_size).astype(self.kind)

    def packed(self, counts: tuple[int, ...]) -> Array:
        """The next tokens of each sequence, packed."""
        spans = zip(self.qkv, self.past.tolist(), counts, strict=True)
        return np.concatenate([qkv[past : past + count] for qkv, past, count in spans])

    def step(self, counts: tuple[int, ...], **changes: Array | None) -> list[Array]:
        """What paged attention makes of the next tokens of each sequence, which are in the caches then."""
        given: dict[str, Any] = {
            "qkv": self.packed(counts),
            "key": None,
            "value": None,
            "key_cache": self.caches[0],
            "value_cache": self.caches[1],
            "starts": np.array([0, *np.cumsum(counts)], np.int32),
            "past": self.past,
            "table": self.table,
        }
        behind = ("cos", "sin", "slots", "sink", "q_norm", "k_norm", "k_scale", "v_scale", "metadata")
        given |= {name: self.optional.get(name) for name in behind}
        output, *_ = paged_attention(*(given | changes).values(), **self.shape.attributes)
        self.past = self.past + np.array(counts, np.int32)
        return np.split(output, np.cumsum(counts)[:-1])

    def dense(self, sequence: int) -> Doubles:
        """What each token of a sequence sees, ``[length, heads * head_size]``: each query by itself, in fp64."""
        shape = self.shape
        parts = self.qkv[sequence].astype(np.float64).reshape(self.lengths[sequence], -1, shape.head_size)
        queries, keys, values = np.split(parts, [shape.heads, shape.heads + shape.kv_heads], axis=1)
        queries, keys = self._prepared(queries, "q_norm"), self._prepared(keys, "k_norm")
        found = np.empty_like(queries)
        for position in range(len(queries)):
            first = 0 if shape.window < 0 else max(0, position + 1 - shape.window)
            for head in range(shape.heads):
                seen = slice(first, position + 1), head // shape.group
                scores = keys[seen] @ queries[position, head] * (shape.scale or 1 / np.sqrt(shape.head_size))
                if shape.softcap:
                    scores = shape.softcap * np.tanh(scores / shape.softcap)
                shares = np.exp(scores)
                sink = np.exp(self.optional["sink"].astype(np.float64)[head]) if shape.sinks else 0
                found[position, head] = shares @ values[seen] / (shares.sum() + sink)
        return found.reshape(len(queries), -1)

    def _prepared(self, x: Doubles, gain: str) -> Doubles:
        if self.shape.norms:
            x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-3) * self.optional[gain].astype(np.float64)
        rotated = self.shape.rotated
        if not rotated:
            return x
        # Pairs are complex numbers, which a product with another turns.
        turns = self.optional["cos"].astype(np.float64) + 1j * self.optional["sin"].astype(np.float64)
        turned = x[..., :rotated]
        if self.shape.interleaved:
            pairs = (turned[..., 0::2] + 1j * turned[..., 1::2]) * turns[: len(x), None]
            turned = np.stack([pairs.real, pairs.imag], axis=-1).reshape(turned.shape)
        else:
            pairs = (turned[..., : rotated // 2] + 1j * turned[..., rotated // 2 :]) * turns[: len(x), None]
            turned = np.concatenate([pairs.real, pairs.imag], axis=-1)
        return np.concatenate([turned, x[..., rotated:]], axis=-1)
