"""com.microsoft.PagedAttention as onnxruntime-gpu 1.31 has it: causal attention over caches that lie in blocks.

Where the kernel takes a block, a slot, a position or a bound as it comes, and then reads or writes memory that is not
meant, this one raises ``ValueError``. All inputs that are not int32 have one type: fp16, bf16, or fp32, which the
kernel lacks, so that a test can compare without rounding.
"""

from __future__ import annotations

import numpy as np

from tests.cuda_reference.paged_heads import Heads
from tests.cuda_reference.paged_layout import Integers, Layout
from tests.cuda_reference.paged_scores import Scores
from tests.cuda_reference.tensors import Array, Floats, one_float_type, wide


def paged_attention(
    query: Array,
    key: Array | None,
    value: Array | None,
    key_cache: Array,
    value_cache: Array,
    cumulative_sequence_length: Integers,
    past_seqlens: Integers,
    block_table: Integers,
    cos_cache: Array | None = None,
    sin_cache: Array | None = None,
    slot_mapping: Integers | None = None,
    head_sink: Array | None = None,
    q_norm_weight: Array | None = None,
    k_norm_weight: Array | None = None,
    k_scale: Array | None = None,
    v_scale: Array | None = None,
    attention_metadata: Integers | None = None,
    /,
    *,
    num_heads: int,
    kv_num_heads: int,
    scale: float = 0.0,
    softcap: float = 0.0,
    local_window_size: int = -1,
    do_rotary: int = 0,
    rotary_interleaved: int = 0,
    qk_norm_epsilon: float = 1e-6,
) -> tuple[Array, Array, Array]:
    """The attended values ``[tokens, num_heads * head_size]``, and the caches, which are written in place.

    Args:
        query: ``[tokens, num_heads * head_size]``, or queries, keys and values side by side where the next two are
            absent, ``[tokens, (num_heads + 2 * kv_num_heads) * head_size]``.
        key: ``[tokens, kv_num_heads * head_size]``, as ``value``.
        key_cache: ``[blocks, block_size, kv_num_heads, head_size]``, as ``value_cache``.
        cumulative_sequence_length: ``[batch + 1]``, the first token of each sequence, and ``tokens``.
        past_seqlens: ``[batch]``, tokens that the caches hold of each sequence.
        block_table: ``[batch, width]``. Entries that no query of the sequence sees are not looked at.
        cos_cache: ``[positions, rotated / 2]``, as ``sin_cache``; the first ``rotated`` elements of a head are.
        slot_mapping: ``[tokens]``, where each token is written, counted over all blocks; -1 is nowhere. Absent, it is
            where ``block_table`` has the token's position. A slot that two tokens are written to holds NaN.
        head_sink: ``[num_heads]``, scores of a token that has no value.
        q_norm_weight: ``[head_size]``, the gain of each head's RMS norm, as ``k_norm_weight``.
        k_scale: none, as ``v_scale``: the caches are not quantised.
        attention_metadata: ``[2]`` or ``[3]``: no sequence has more new tokens than the first, none has more tokens
            than the second, and one has the third at least. 0 says nothing.
        scale: of scores; 0 is one by the root of ``head_size``.
        softcap: bound of scores; 0 is none.
        local_window_size: tokens that a query sees, itself among them; -1 is all.

    Raises:
        ValueError: A shape, size, block, slot, position or bound is wrong.
        TypeError: A type is wrong.
    """
    floats = (query, key, value, key_cache, value_cache, cos_cache, sin_cache, head_sink, q_norm_weight, k_norm_weight)
    kind = one_float_type(*(array for array in floats if array is not None))
    if k_scale is not None or v_scale is not None:
        raise ValueError("a scale of a quantised cache, which this reference does not have")
    _check_caches(key_cache, value_cache, kv_num_heads)
    blocks, block_size, _, head_size = key_cache.shape
    scores = Scores(scale or head_size**-0.5, softcap, local_window_size, _sinks(head_sink, num_heads, kv_num_heads))
    layout = Layout.of(len(query), cumulative_sequence_length, past_seqlens, block_table, blocks, block_size)
    if attention_metadata is not None:
        layout.check_bounds(attention_metadata)
    heads = Heads.of(query, key, value, num_heads, kv_num_heads, head_size)
    heads = heads.normed(q_norm_weight, k_norm_weight, qk_norm_epsilon)
    if do_rotary:
        heads = heads.rotated(cos_cache, sin_cache, layout.positions, interleaved=bool(rotary_interleaved))
    slots = layout.slots() if slot_mapping is None else layout.checked_slots(slot_mapping)
    _write(key_cache, slots, heads.keys)
    _write(value_cache, slots, heads.values)
    output = np.empty((len(query), num_heads, head_size), np.float32)
    for sequence in range(layout.batch):
        rows = layout.rows(sequence)
        if rows.start < rows.stop:
            output[rows] = _attended(heads.queries[rows], layout, sequence, (key_cache, value_cache), scores)
    return output.reshape(len(query), num_heads * head_size).astype(kind), key_cache, value_cache


def _check_caches(key_cache: Array, value_cache: Array, kv_heads: int) -> None:
    if key_cache.ndim != 4 or key_cache.shape != value_cache.shape or key_cache.shape[2] != kv_heads:
        shapes = f"{key_cache.shape} and {value_cache.shape}"
        raise ValueError(f"caches of the shapes {shapes}, which should be [blocks, block_size, {kv_heads}, head_size]")
    block_size, head_size = key_cache.shape[1], key_cache.shape[3]
    if block_size < 16 or block_size & (block_size - 1):
        raise ValueError(f"blocks of {block_size} tokens, which should be a power of two, 16 at least")
    if head_size % 8:
        raise ValueError(f"heads of {head_size} elements, which should be a multiple of 8")
    if not (key_cache.flags.writeable and value_cache.flags.writeable):
        raise ValueError("a cache that is no input of the graph: what is written to it would be lost")


def _sinks(head_sink: Array | None, heads: int, kv_heads: int) -> Floats | None:
    if head_sink is None:
        return None
    if head_sink.shape != (heads,):
        raise ValueError(f"head_sink of the shape {head_sink.shape} for {heads} heads")
    return wide(head_sink).reshape(kv_heads, -1, 1, 1)


def _write(cache: Array, slots: Integers, rows: Array) -> None:
    written = slots >= 0
    cache[np.unravel_index(slots[written], cache.shape[:2])] = rows[written]
    # The kernel writes all at once, so nobody knows which token such a slot would hold.
    found, counts = np.unique(slots[written], return_counts=True)
    cache[np.unravel_index(found[counts > 1], cache.shape[:2])] = np.nan


def _attended(queries: Array, layout: Layout, sequence: int, caches: tuple[Array, Array], scores: Scores) -> Floats:
    """What the new tokens of one sequence see, ``[new, heads, head_size]``, of all that is in the caches by now."""
    asked = layout.positions[layout.rows(sequence)]
    seen = np.arange(scores.first_seen(int(asked[0])), asked[-1] + 1)
    places = layout.places(sequence, seen)
    keys, values = (wide(cache[places]) for cache in caches)
    grouped = wide(queries).reshape(len(queries), keys.shape[1], -1, keys.shape[2])
    found: Floats = np.einsum("kgqs,skd->qkgd", scores.shares(grouped, keys, asked, seen), values)
    return found.reshape(queries.shape)
