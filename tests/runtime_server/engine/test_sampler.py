from collections.abc import Sequence as Items
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mantler.messages import SamplingParams
from runtime_server.engine.sampler import DEPTHS, Floats, Row, SamplingRow, cut, draw, kept, sample


def naive_cut(weights: Items[float], params: SamplingParams, total: float) -> int:
    """The definition: the nucleus is the shortest beginning with a share of ``top_p``; min_p looks at each token."""
    nucleus, mass = 0, 0.0
    for weight in weights:
        nucleus += 1
        mass += weight
        if params.top_p < 1 and mass >= params.top_p * total:
            break
    return sum(weight >= params.min_p * weights[0] for weight in weights[:nucleus])


def naive_kept(logits: Floats, params: SamplingParams) -> list[int]:
    """The definition, with a full sort."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[: params.top_k or None]
    every = np.exp((logits - logits.max()) * np.float32(1 / params.temperature))
    weights = every[order]
    total = float(weights.sum(dtype=np.float64) if params.top_k else every.sum())
    return order[: naive_cut(weights.tolist(), params, total)]


cuts = {
    "top_p": st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.25, 0.01]),
    "min_p": st.sampled_from([0.0, 0.01, 0.25, 0.5, 1.0]),
}


# Powers of two add up without rounding, so the definition and the fast way agree on every border.
@given(
    st.lists(st.integers(0, 12).map(lambda e: 2.0**-e), min_size=1, max_size=600),
    st.builds(SamplingParams, **cuts),
    st.sampled_from([0.0, 0.5]),
)
def test_cut_is_the_definition(weights: list[float], params: SamplingParams, rest: float) -> None:
    weights.sort(reverse=True)
    total = sum(weights) + rest
    assert cut(np.array(weights, np.float32), params, total) == naive_cut(weights, params, total)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 2000),
    st.sampled_from([0.0, 0.1, 3.0, 20.0]),
    st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.1, 0.7, 1.0, 2.0]),
        top_k=st.sampled_from([0, 1, 2, 40, 300, 10_000]),
        **cuts,
    ),
)
def test_kept_is_the_definition(seed: int, size: int, spread: float, params: SamplingParams) -> None:
    logits = (np.random.default_rng(seed).standard_normal(size) * spread).round(1).astype(np.float32)
    ids, weights = kept(Row(logits, params.temperature), params)
    assert ids.tolist() == naive_kept(logits, params)
    assert (np.diff(weights) <= 0).all()
    for number in (0.0, 0.3, 1 - 2**-53):
        assert draw(logits, params, number) in ids


@pytest.mark.parametrize("deepest", range(len(DEPTHS)))
def test_tokens_far_below_the_likeliest_are_found(deepest: int) -> None:
    depths = [depth for depth in DEPTHS if depth < np.inf]
    logits = np.array([0.0] + [-depth - 1 for depth in depths], np.float32)
    ids, _ = kept(Row(logits, 1.0), SamplingParams(top_k=deepest + 1))
    assert ids.tolist() == list(range(deepest + 1))


@pytest.mark.parametrize("size", [1, 255, 256, 257, 1000])
def test_without_cuts_the_tokens_follow_by_id(size: int) -> None:
    logits = np.zeros(size, np.float32)
    for token in {0, size // 2, size - 1}:
        assert draw(logits, SamplingParams(), (token + 0.5) / size) == token


def test_draws_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))
    numbers = (np.arange(10_000) + 0.5) / 10_000
    drawn = np.bincount([draw(logits, SamplingParams(), number) for number in numbers], minlength=4) / 10_000
    np.testing.assert_allclose(drawn, [0.5, 0.25, 0.125, 0.125], atol=1e-3)


def test_a_temperature_near_zero_is_greedy_and_finite() -> None:
    logits = np.array([1.0, 3.0, 2.0], np.float32)
    assert draw(logits, SamplingParams(temperature=1e-30), 0.999) == 1


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53])
def test_a_token_without_weight_is_never_drawn(number: float) -> None:
    logits = np.array([-np.inf, 0.0, -np.inf], np.float32)
    assert draw(logits, SamplingParams(), number) == 1


def test_rows_are_independent_of_each_other() -> None:
    generator = np.random.default_rng(5)
    logits = generator.standard_normal((8, 500)).astype(np.float32)
    rows = [
        SamplingRow(SamplingParams(temperature=0.0 if i % 3 == 0 else 1.0, top_p=0.9 if i % 2 else 1.0), i * 17, 0, i)
        for i in range(8)
    ]
    together = sample(logits.copy(), rows)
    assert together == [sample(logits[i : i + 1].copy(), [row])[0] for i, row in enumerate(rows)]
    assert together == [sample(logits[::-1].copy(), rows[::-1])[7 - i] for i in range(8)]


def test_banned_tokens_are_not_drawn() -> None:
    logits = np.array([[5.0, 4.0, 3.0]], np.float32)
    greedy = SamplingParams(temperature=0.0)
    assert sample(logits.copy(), [SamplingRow(greedy, 0, 0, 0)]) == [0]
    assert sample(logits.copy(), [SamplingRow(greedy, 0, 0, 0, banned=(0, 1))]) == [2]


@pytest.mark.parametrize("temperature", [1e-30, 1e-45])
@pytest.mark.parametrize("cuts", [{}, {"top_p": 0.5}, {"top_k": 3}, {"min_p": 0.1}])
def test_a_tiny_temperature_is_greedy(temperature: float, cuts: dict[str, Any]) -> None:
    logits = np.array([1.0, 9.0, -20.0, 8.0], np.float32)
    assert draw(logits, replace(SamplingParams(temperature=temperature), **cuts), 0.99) == 1


@pytest.mark.parametrize("cuts", [{}, {"min_p": 0.1}, {"top_p": 0.9}, {"top_k": 3}], ids=str)
def test_logits_that_are_no_numbers_harm_nobody_else(cuts: dict[str, Any]) -> None:
    row = SamplingRow(SamplingParams(temperature=1.0, **cuts), seed=1, choice=0, position=0)
    good = np.linspace(0, 1, 50, dtype=np.float32)
    logits = np.stack([good, np.full(50, np.nan, np.float32), good])
    first, _, last = sample(logits, [row] * 3)
    assert first == last == sample(good[None].copy(), [row])[0]
