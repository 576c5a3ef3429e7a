"""Attention over scattered blocks against its definition; and that a row's bits depend on its own sequence only."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_dtypes import bfloat16

from runtime_server import native
from tests.runtime_server.native.operators import Heads, Step, distance

ROUNDED = 4e-3 if native.instruction_set() == "avx512_bf16" else 1e-4
"""Products of bf16 round queries and weights, too."""


def check(step: Step) -> None:
    result, cache = step.run()
    expected, expected_cache = step.expected()
    assert distance(result, expected) < ROUNDED
    # Rotated in fp32 here and in fp64 there, so a key may be rounded to the next bf16.
    actual, wanted = (of.view(bfloat16).astype(np.float64) for of in (cache, expected_cache))
    np.testing.assert_allclose(actual, wanted, rtol=2**-7, atol=1e-5)
    written = np.zeros(cache.shape, np.bool_)
    written[step.table[step.table >= 0], step.shape.layer] = True
    np.testing.assert_array_equal(cache[~written], step.cache[~written])


@pytest.mark.parametrize("head_dim", [16, 32, 64, 80, 96, 128, 256])
def test_any_size_of_a_head(head_dim: int) -> None:
    check(Step.random(Heads(3, 1, head_dim), past=(0, 20), new=(18, 1)))


@pytest.mark.parametrize("group", [1, 2, 3, 4, 7, 8])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_any_group_of_heads(group: int, kv_heads: int) -> None:
    check(Step.random(Heads(group * kv_heads, kv_heads, 32), past=(5, 0, 33), new=(1, 21, 2)))


@pytest.mark.parametrize("past", [0, 1, 15, 16, 17, 239, 240, 255, 256, 257, 511, 512, 700])
@pytest.mark.parametrize("new", [1, 2, 17])
def test_positions_at_the_borders_of_blocks_and_segments(past: int, new: int) -> None:
    check(Step.random(Heads(2, 1, 16), past=(past,), new=(new,)))


@pytest.mark.parametrize("window", [1, 2, 16, 17, 100, 256, 300, 1000])
def test_windows(window: int) -> None:
    check(Step.random(Heads(3, 1, 16, window=window), past=(0, 290, 530), new=(40, 1, 20)))


def test_norms_of_queries_and_keys() -> None:
    check(Step.random(Heads(4, 2, 32, norms=True), past=(3, 0), new=(4, 17)))


def test_every_layer_has_its_own_place() -> None:
    for layer in range(3):
        check(Step.random(Heads(2, 2, 16, layers=3, layer=layer), past=(7,), new=(12,)))


def test_many_sequences_of_different_lengths() -> None:
    past = (0, 1, 14, 15, 16, 31, 100, 255, 300, 64)
    new = (1, 1, 1, 1, 1, 1, 30, 2, 1, 5)
    check(Step.random(Heads(6, 2, 32), past, new))


def test_large_scores_leave_one_key() -> None:
    step = Step.random(Heads(2, 1, 16), past=(300,), new=(3,))
    step.qkv[:] *= 200
    result, _ = step.run()
    assert np.isfinite(result).all()
    assert distance(result, step.expected()[0]) < 1e-2


PROMPT = Step.random(Heads(6, 2, 32, window=40), past=(250,), new=(45,))
WHOLE = PROMPT.run()


@settings(deadline=None, max_examples=25)
@given(st.sets(st.integers(1, 44)))
def test_however_a_prompt_is_cut_its_rows_have_the_same_bits(cuts: set[int]) -> None:
    cache, results = PROMPT.cache, []
    for start, stop in pairwise([0, *sorted(cuts), 45]):
        result, cache = PROMPT.part(0, start, stop, cache).run()
        results.append(result)
    np.testing.assert_array_equal(np.concatenate(results), WHOLE[0])
    np.testing.assert_array_equal(cache, WHOLE[1])


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 270), st.integers(1, 20)), min_size=1, max_size=6), st.sampled_from([0, 9]))
def test_a_sequence_has_the_same_bits_in_any_batch(lengths: list[tuple[int, int]], window: int) -> None:
    past, new = zip(*lengths, strict=True)
    step = Step.random(Heads(3, 1, 32, window=window), past, new)
    together, _ = step.run()
    alone = [step.part(i, 0, count, step.cache).run()[0] for i, count in enumerate(new)]
    np.testing.assert_array_equal(together, np.concatenate(alone))
