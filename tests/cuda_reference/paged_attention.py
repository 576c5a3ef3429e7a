"""com.microsoft.PagedAttention, from what its schema says: slow, one query at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_KNOWN = {"num_heads", "kv_num_heads", "do_rotary", "scale", "local_window_size", "qk_norm_epsilon"}


def paged_attention(inputs: list[Array | None], attributes: dict[str, Any]) -> Array:
    """The attended values ``[tokens, heads * head_dim]``. Keys and values go into the caches, as with the kernel."""
    assert attributes.keys() <= _KNOWN, f"unknown attributes: {attributes.keys() - _KNOWN}"
    qkv, key, value, key_cache, value_cache, starts, past, table, cos, sin = inputs[:10]
    slots, sink, q_norm, k_norm, k_scale, v_scale, bounds = inputs[10:]
    for absent in (key, value, slots, sink, k_scale, v_scale):
        assert absent is None, "an input that this reference does not have"
    assert qkv is not None
    assert key_cache is not None
    assert value_cache is not None
    assert starts is not None
    assert past is not None
    assert table is not None
    assert cos is not None
    assert sin is not None
    assert bounds is not None
    heads, kv_heads = attributes["num_heads"], attributes["kv_num_heads"]
    head_dim, block_tokens = key_cache.shape[3], key_cache.shape[1]
    assert key_cache.shape == value_cache.shape == (key_cache.shape[0], block_tokens, kv_heads, head_dim)
    assert qkv.shape[1] == (heads + 2 * kv_heads) * head_dim
    assert starts[0] == 0
    assert starts[-1] == len(qkv)
    _check_bounds(np.diff(starts), past, bounds)
    q, k, v = np.split(qkv.astype(np.float32), [heads * head_dim, (heads + kv_heads) * head_dim], axis=1)
    q, k = q.reshape(-1, heads, head_dim), k.reshape(-1, kv_heads, head_dim)
    v = v.reshape(-1, kv_heads, head_dim)
    if q_norm is not None and k_norm is not None:
        q, k = (_normed(x, gain, attributes["qk_norm_epsilon"]) for x, gain in ((q, q_norm), (k, k_norm)))
    counts = np.diff(starts)
    positions = np.concatenate([np.arange(p, p + n) for p, n in zip(past, counts, strict=True)])
    assert positions.max(initial=0) < len(cos), "a position behind the rotary tables"
    if attributes.get("do_rotary"):
        q, k = (_rotated(x, cos[positions], sin[positions]) for x in (q, k))
    sequences = np.repeat(np.arange(len(past)), counts)
    for row, (sequence, position) in enumerate(zip(sequences, positions, strict=True)):
        block, place = table[sequence, position // block_tokens], position % block_tokens
        key_cache[block, place], value_cache[block, place] = k[row], v[row]
    result = np.empty((len(qkv), heads * head_dim), np.float32)
    window = attributes["local_window_size"]
    for row, (sequence, position) in enumerate(zip(sequences, positions, strict=True)):
        blocks = table[sequence, : position // block_tokens + 1]
        first = max(0, position - window + 1) if window > 0 else 0
        seen = slice(first, position + 1)
        keys, values = (
            cache[blocks].reshape(-1, kv_heads, head_dim)[seen].astype(np.float32) for cache in (key_cache, value_cache)
        )
        queries = q[row].reshape(kv_heads, heads // kv_heads, head_dim)
        scores = np.einsum("kgd,tkd->kgt", queries, keys) * attributes["scale"]
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        result[row] = np.einsum("kgt,tkd->kgd", shares, values).reshape(-1)
    return result.astype(qkv.dtype)


def _check_bounds(counts: Array, past: Array, bounds: Array) -> None:
    """What is told of the step must be so: the kernel trusts it."""
    longest = int((past + counts).max())
    assert counts.max() <= bounds[0], "a sequence adds more tokens than the bounds say"
    assert bounds[2] <= longest <= bounds[1], "a sequence is longer or all are shorter than the bounds say"


def _normed(x: Array, gain: Array, epsilon: float) -> Array:
    scaled: Array = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + epsilon)
    return scaled * gain.astype(np.float32)


def _rotated(x: Array, cos: Array, sin: Array) -> Array:
    low, high = np.split(x, 2, axis=-1)
    cos, sin = cos[:, None].astype(np.float32), sin[:, None].astype(np.float32)
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)
