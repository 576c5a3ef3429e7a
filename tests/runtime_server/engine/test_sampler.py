from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mantler.messages import SamplingParams
from runtime_server.engine.sampler import SamplingRow, draw, kept, sample


def naive_kept(weights: NDArray[np.float32], params: SamplingParams) -> list[int]:
    """The definition, with a full sort."""
    order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
    if params.top_k:
        order = order[: params.top_k]
    total = sum(float(weights[i]) for i in order)
    nucleus, mass = [], 0.0
    for i in order:
        nucleus.append(i)
        mass += float(weights[i])
        if params.top_p < 1 and mass >= params.top_p * total:
            break
    floor = np.float32(params.min_p) * weights[order[0]]
    return [i for i in nucleus if weights[i] >= floor]


# Powers of two add up without rounding, so the definition and the fast way agree on every border.
weights_strategy = st.lists(st.integers(0, 12).map(lambda e: 2.0**-e), min_size=1, max_size=600).map(
    lambda values: np.array(values, np.float32)
)
params_strategy = st.builds(
    SamplingParams,
    temperature=st.just(1.0),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.25, 0.01]),
    top_k=st.sampled_from([0, 1, 2, 40, 300, 10_000]),
    min_p=st.sampled_from([0.0, 0.01, 0.25, 0.5, 1.0]),
)


@given(weights_strategy, params_strategy)
def test_kept_is_the_definition(weights: NDArray[np.float32], params: SamplingParams) -> None:
    assert kept(weights, params).tolist() == naive_kept(weights, params)


@given(weights_strategy, params_strategy, st.floats(0, 1, exclude_max=True))
def test_a_drawn_token_is_one_of_those_kept(
    weights: NDArray[np.float32], params: SamplingParams, number: float
) -> None:
    assert draw(np.log(weights), params, number) in naive_kept(weights, params)


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
