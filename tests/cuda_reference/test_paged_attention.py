"""Paged attention against dense attention, however tokens are batched, and that mistakes do not go unseen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_dtypes import bfloat16

from tests.cuda_reference.paged_heads import Heads
from tests.cuda_reference.sequences import BLOCK, Sequences, Shape
from tests.cuda_reference.tensors import Array

Steps = Iterable[tuple[int, ...]]


def integers(*values: Any) -> Array:
    return np.array(values, np.int32)


def run(sequences: Sequences, steps: Steps) -> list[Array]:
    """What each sequence's tokens see, after all steps."""
    found: list[list[Array]] = [[] for _ in sequences.lengths]
    for counts in steps:
        for parts, new in zip(found, sequences.step(counts), strict=True):
            parts.append(new)
    return [np.concatenate(parts) for parts in found]


def check(sequences: Sequences, steps: Steps) -> None:
    for sequence, found in enumerate(run(sequences, steps)):
        np.testing.assert_allclose(found, sequences.dense(sequence), rtol=1e-4, atol=1e-5)


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    head_size = draw(st.sampled_from([8, 16, 24]))
    return Shape(
        kv_heads=draw(st.integers(1, 2)),
        group=draw(st.integers(1, 3)),
        head_size=head_size,
        window=draw(st.sampled_from([-1, 1, 2, BLOCK, BLOCK + 1, 30, 1000])),
        scale=draw(st.sampled_from([0.0, 0.5])),
        softcap=draw(st.sampled_from([0.0, 1.5])),
        rotated=draw(st.sampled_from([0, 8, head_size])),
        interleaved=draw(st.booleans()),
        norms=draw(st.booleans()),
        sinks=draw(st.booleans()),
    )


@st.composite
def schedules(draw: st.DrawFn) -> list[tuple[int, ...]]:
    """New tokens of each sequence in each step: prompts at once or in chunks, decodes, and sequences that pause."""
    batch = draw(st.integers(1, 3))
    count = st.one_of(st.just(0), st.just(1), st.integers(1, 40))
    steps = draw(st.lists(st.tuples(*[count] * batch), min_size=1, max_size=4))
    return [tuple(max(1, number) for number in steps[0]), *steps[1:]]


@settings(deadline=None, max_examples=60)
@given(shapes(), schedules(), st.integers(0, 99))
def test_any_batches_are_as_dense_attention(shape: Shape, steps: list[tuple[int, ...]], seed: int) -> None:
    lengths = tuple(map(sum, zip(*steps, strict=True)))
    sequences = Sequences(shape, lengths, seed)
    check(sequences, steps)
    check(Sequences(shape, lengths, seed), [lengths])


ALL = Shape(group=2, head_size=16, window=20, softcap=3.0, rotated=16, norms=True, sinks=True)


@pytest.mark.parametrize("kind", [np.float16, bfloat16])
def test_narrow_types_are_rounded(kind: Any) -> None:
    sequences = Sequences(ALL, (37, 18), kind=kind)
    for sequence, found in enumerate(run(sequences, [(30, 10), (7, 8)])):
        assert found.dtype == kind
        tolerance = float(np.finfo(np.float16).eps) if kind is np.float16 else 2.0**-7
        np.testing.assert_allclose(found.astype(np.float64), sequences.dense(sequence), atol=4 * tolerance)


def test_packed_and_separate_inputs_are_the_same() -> None:
    whole, apart = Sequences(ALL, (20,)), Sequences(ALL, (20,))
    (expected,) = whole.step((20,))
    query, key, value = np.split(apart.packed((20,)), [64, 96], axis=1)
    (found,) = apart.step((20,), qkv=query, key=key, value=value)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(apart.caches, whole.caches)


def test_sequences_share_blocks_of_a_common_beginning() -> None:
    sequences = Sequences(Shape(rotated=8), (3 * BLOCK, 3 * BLOCK))
    shared = 2 * BLOCK
    sequences.qkv[1][:shared] = sequences.qkv[0][:shared]
    sequences.table[1, :2] = sequences.table[0, :2]
    own, _ = sequences.step((3 * BLOCK, 0))
    sequences.past[1] = shared
    _, other = sequences.step((0, BLOCK))
    np.testing.assert_allclose(own, sequences.dense(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(other, sequences.dense(1)[shared:], rtol=1e-4, atol=1e-5)


def test_only_the_slots_of_new_tokens_are_written() -> None:
    sequences = Sequences(Shape(), (40, 20))
    sequences.step((17, 20))
    before = [cache.copy() for cache in sequences.caches]
    sequences.step((3, 0))
    written = np.zeros(sequences.caches[0].shape[:2], np.bool_)
    written[sequences.table[0, 1], 1:4] = True
    for cache, old in zip(sequences.caches, before, strict=True):
        np.testing.assert_array_equal(cache[~written], old[~written])
        assert np.isnan(old[written]).all()
        assert not np.isnan(cache[written]).any()


def test_blocks_that_no_query_sees_are_not_looked_at() -> None:
    sequences = Sequences(Shape(window=BLOCK + 1), (3 * BLOCK + 1,))  # from the first of the third block
    sequences.step((3 * BLOCK,))
    sequences.table[0, :2] = [-1, 10_000]
    (found,) = sequences.step((1,))
    np.testing.assert_allclose(found, sequences.dense(0)[-1:], rtol=1e-4, atol=1e-5)


def test_slots_say_where_tokens_go() -> None:
    sequences = Sequences(Shape(), (20, 4))
    block = int(sequences.table[0, 1])
    slots = sequences.table[[0] * 16 + [1] * 4, 0] * BLOCK + np.concatenate([np.arange(16), np.arange(4)])
    slots = np.insert(slots, 16, [block * BLOCK + 0, block * BLOCK + 1, block * BLOCK + 2, block * BLOCK + 3])
    for found, sequence in zip(sequences.step((20, 4), slots=integers(*slots)), (0, 1), strict=True):
        np.testing.assert_allclose(found, sequences.dense(sequence), rtol=1e-4, atol=1e-5)


def test_a_token_without_a_slot_reads_what_was_written_before() -> None:
    """As one that is computed again for its logits alone."""
    sequences = Sequences(Shape(), (20,))
    (first,) = sequences.step((20,))
    before = [cache.copy() for cache in sequences.caches]
    sequences.past[0] = 19
    sequences.qkv[0][19, 16:] = 7  # its key and value go nowhere
    (again,) = sequences.step((1,), slots=integers(-1))
    np.testing.assert_allclose(again, first[-1:], rtol=1e-5)
    np.testing.assert_array_equal(sequences.caches, before)


@pytest.mark.parametrize("mistake", ["table", "past", "other's table", "slot", "twice"])
def test_a_mistake_shows_in_the_result(mistake: str) -> None:
    sequences = Sequences(Shape(rotated=8), (40, 40))
    sequences.step((32, 32))
    changes: dict[str, Array] = {}
    match mistake:
        case "table":
            changes["table"] = sequences.table[:, [0, 2, 1]]  # of blocks that are full, the order is the same
        case "other's table":
            changes["table"] = sequences.table[::-1]
        case "past":
            changes["past"] = sequences.past - integers(1, 0)
        case "slot":
            right = sequences.table[:, 2] * BLOCK
            changes["slots"] = np.concatenate([right[:1] + 1, right[1:]]).astype(np.int32)
        case "twice":
            changes["slots"] = np.repeat(sequences.table[:1, 2] * BLOCK, 2).astype(np.int32)
    found, _ = sequences.step((1, 1), **changes)
    assert not np.allclose(found, sequences.dense(0)[32], rtol=0.01, atol=0.01)


def test_what_nobody_wrote_and_what_two_wrote_is_nan() -> None:
    sequences = Sequences(Shape(), (40, 4))
    found, other = sequences.step((1, 1), past=integers(3, 0))
    assert np.isnan(found).all()
    assert not np.isnan(other).any()
    slot = integers(sequences.table[1, 0] * BLOCK)
    found, other = sequences.step((1, 1), slots=np.repeat(slot, 2), past=integers(0, 0))
    assert np.isnan(sequences.caches[0][sequences.table[1, 0], 0]).all()
    assert np.isnan(other).all()


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ([2, 22, 0], None),
        ([2, 22, 22], None),
        ([0, 0], None),
        ([5, 100, 3], None),
        ([1, 22], "2 new tokens and 22 in all, which attention_metadata .* excludes"),
        ([2, 21], "excludes"),
        ([2, 30, 23], "excludes"),
        ([2, -1], "0 or above"),
        ([2], "2 or 3 numbers"),
    ],
)
def test_bounds_are_held_to(bounds: list[int], message: str | None) -> None:
    sequences = Sequences(Shape(), (22, 20))
    sequences.step((20, 19))
    if message is None:
        sequences.step((2, 1), metadata=integers(*bounds))
        return
    with pytest.raises(ValueError, match=message):
        sequences.step((2, 1), metadata=integers(*bounds))


CACHE = np.zeros((2, BLOCK, 2, 8), np.float32)
REFUSED: dict[str, tuple[dict[str, Array | None], str]] = {
    "unmapped": ({"table": integers([-1])}, "position 0 of sequence 0 is in block -1 of 3"),
    "no such block": ({"table": integers([3])}, "in block 3 of 3"),
    "table too narrow": ({"past": integers(15)}, r"past_seqlens \[15\] and \[2\] new tokens in rows for 16"),
    "negative past": ({"past": integers(-1)}, "past_seqlens"),
    "beyond the rotary tables": ({"past": integers(1)}, "position 2 in rotary tables of 2"),
    "slot beyond the caches": ({"slots": integers(0, 48)}, "slot 48 of 48"),
    "slot below": ({"slots": integers(0, -2)}, "slot -2"),
    "slots of other tokens": ({"slots": integers(0)}, "slot_mapping of the shape"),
    "starts elsewhere": ({"starts": integers(1, 2)}, "does not rise from 0 to 2"),
    "ends elsewhere": ({"starts": integers(0, 3)}, "does not rise from 0 to 2"),
    "falls": ({"starts": integers(0, 3, 2), "past": integers(0, 0), "table": integers([0], [1])}, "does not rise"),
    "other batch": ({"starts": integers(0, 1, 2)}, "cumulative_sequence_length"),
    "other table": ({"table": integers([0], [1])}, "block_table of the shape"),
    "wrong width": ({"qkv": np.zeros((2, 40), np.float32)}, "should be 48 wide"),
    "wrong key": (
        {name: np.zeros((2, width), np.float32) for name, width in (("qkv", 16), ("key", 8), ("value", 16))},
        r"key of the shape \(2, 8\), which should be \(2, 16\)",
    ),
    "key without value": ({"key": np.zeros((2, 16), np.float32)}, "one of key and value"),
    "one norm": ({"q_norm": np.ones(8, np.float32)}, "one of q_norm_weight"),
    "gain of another size": ({"q_norm": np.ones(4, np.float32), "k_norm": np.ones(4, np.float32)}, "a gain"),
    "no tables": ({"cos": None}, "do_rotary without"),
    "tables too wide": ({"cos": np.ones((2, 5), np.float32), "sin": np.ones((2, 5), np.float32)}, "rotary tables"),
    "sinks of other heads": ({"sink": np.ones(3, np.float32)}, "head_sink of the shape"),
    "quantised": ({"k_scale": np.ones(1, np.float32)}, "quantised"),
    "other caches": ({"value_cache": CACHE[:1]}, "caches of the shapes"),
    "other heads": ({"key_cache": CACHE[:, :, :1], "value_cache": CACHE[:, :, :1]}, "caches of the shapes"),
    "small blocks": ({"key_cache": CACHE[:, :8], "value_cache": CACHE[:, :8]}, "blocks of 8 tokens"),
    "odd heads": ({"key_cache": CACHE[..., :4], "value_cache": CACHE[..., :4]}, "heads of 4 elements"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    changes, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        Sequences(Shape(rotated=8), (2,)).step((2,), **changes)


@pytest.mark.parametrize("name", ["starts", "past", "table", "slots", "metadata"])
def test_whole_numbers_are_int32(name: str) -> None:
    with pytest.raises(TypeError, match="int64, which should be int32"):
        Sequences(Shape(), (2,)).step((2,), **{name: np.zeros((1, 2), np.int64)})


@pytest.mark.parametrize("window", [0, -2])
def test_windows_that_are_none(window: int) -> None:
    with pytest.raises(ValueError, match=f"local_window_size {window}"):
        Sequences(Shape(window=window), (2,)).step((2,))


def test_queries_that_cannot_share_keys_evenly() -> None:
    with pytest.raises(ValueError, match="num_heads 3, which should be a multiple of kv_num_heads 2"):
        Heads.of(CACHE[0], None, None, 3, 2, 8)


def test_caches_of_another_type() -> None:
    with pytest.raises(TypeError, match="float16, float32"):
        Sequences(Shape(), (2,)).step((2,), key_cache=CACHE.astype(np.float16))
