from typing import Any

import numpy as np
import pytest

from mantler.messages import SamplingParams
from runtime_server.constraints.mask import Mask
from runtime_server.engine.adjustments import Adjustments
from runtime_server.engine.sampler import SamplingRow, sample

GREEDY = SamplingParams(temperature=0.0)


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
    assert sample(logits.copy(), [SamplingRow(GREEDY, 0, 0, 0)]) == [0]
    assert sample(logits.copy(), [SamplingRow(GREEDY, 0, 0, 0, banned=(0, 1))]) == [2]


@pytest.mark.parametrize("temperature", [0.0, 0.5, 2.0])
def test_bias_penalties_ban_and_mask_are_kept_together(temperature: float) -> None:
    params = SamplingParams(temperature=temperature, logit_bias=((5, 100.0), (2, 100.0)), frequency_penalty=2.0)
    adjustments = Adjustments(params, [])
    mask = Mask(np.array([0b0001_1111], np.uint8))
    for _ in range(60):
        adjustments.add(2)
    row = SamplingRow(params, 3, 0, 60, banned=(0, 1, 3), mask=mask, adjustments=adjustments)
    # The bias lifts 5, which the mask forbids, and 2, which was said too often.
    assert sample(np.zeros((1, 8), np.float32), [row]) == [4]


def test_a_mask_leaves_the_logits_alone() -> None:
    logits = np.arange(8, dtype=np.float32)[None]
    row = SamplingRow(GREEDY, 0, 0, 0, mask=Mask(np.array([0b0000_0110], np.uint8)))
    assert not row.changes_logits
    assert sample(logits, [row]) == [2]
    np.testing.assert_array_equal(logits[0], np.arange(8))


def test_the_same_row_draws_the_same_token_and_others_differ() -> None:
    rows = [SamplingRow(SamplingParams(), 5, 0, position) for position in [*range(40), *range(40)]]
    drawn = sample(np.zeros((80, 1000), np.float32), rows)
    assert drawn[:40] == drawn[40:]
    assert len(set(drawn)) > 30


@pytest.mark.parametrize("temperature", [1e-30, 1e-45])
@pytest.mark.parametrize("cuts", [{}, {"top_p": 0.5}, {"top_k": 3}, {"min_p": 0.1}], ids=str)
def test_a_tiny_temperature_is_greedy(temperature: float, cuts: dict[str, Any]) -> None:
    rows = [SamplingRow(SamplingParams(temperature=temperature, **cuts), 7, 0, position) for position in range(20)]
    logits = np.array([[1.0, 9.0, -20.0, 8.0]] * 20, np.float32)
    assert sample(logits, rows) == [1] * 20


@pytest.mark.parametrize("cuts", [{}, {"min_p": 0.1}, {"top_p": 0.9}, {"top_k": 3}], ids=str)
def test_logits_that_are_no_numbers_harm_nobody_else(cuts: dict[str, Any]) -> None:
    row = SamplingRow(SamplingParams(temperature=1.0, **cuts), seed=1, choice=0, position=0)
    good = np.linspace(0, 1, 50, dtype=np.float32)
    logits = np.stack([good, np.full(50, np.nan, np.float32), good])
    first, _, last = sample(logits, [row] * 3)
    assert first == last == sample(good[None].copy(), [row])[0]


def test_a_greedy_row_with_logits_that_are_no_numbers_does_not_depend_on_its_neighbours() -> None:
    logits = np.array([[0.0, np.nan, 3.0, 1.0]] * 2, np.float32)
    greedy = SamplingRow(GREEDY, 0, 0, 0)
    assert sample(logits, [greedy, greedy]) == [2, 2]
    assert sample(logits, [greedy, SamplingRow(SamplingParams(), 0, 0, 0)])[0] == 2
