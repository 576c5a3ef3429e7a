"""Retries stay within their budget and their deadline."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mantler.errors import TABLE, ErrorCode
from mantler.mesh.retries import Backoff, RetryBudget, may_retry

steps = st.lists(st.tuples(st.booleans(), st.floats(0, 5)), max_size=200)


@given(steps, st.floats(0, 1), st.floats(0, 3), st.floats(0, 20))
def test_never_more_than_the_budget(
    steps: list[tuple[bool, float]], share: float, min_per_s: float, burst: float
) -> None:
    budget = RetryBudget(0, share=share, min_per_s=min_per_s, burst=burst)
    now_s, requests, retries = 0.0, 0, 0
    for is_request, passed_s in steps:
        now_s += passed_s
        if is_request:
            budget.count_request(now_s)
            requests += 1
        else:
            retries += budget.take(now_s)
        assert retries <= burst + share * requests + min_per_s * now_s + 1e-6


def test_a_budget_is_used_up_and_fills_again() -> None:
    budget = RetryBudget(0, share=0.5, min_per_s=0.1, burst=2)
    assert [budget.take(0) for _ in range(3)] == [True, True, False]
    budget.count_request(0)
    assert not budget.take(0)
    budget.count_request(0)
    assert budget.take(0)
    assert budget.take(10)
    assert [budget.take(1000) for _ in range(3)] == [True, True, False]


def test_a_clock_that_goes_back_fills_nothing() -> None:
    budget = RetryBudget(100, share=0, min_per_s=1, burst=1)
    assert budget.take(100)
    assert not budget.take(50)
    assert not budget.take(100.5)
    assert budget.take(101)


@given(st.integers(0, 10_000), st.floats(0, 10), st.integers())
def test_a_wait_is_within_its_bounds(attempt: int, remaining_s: float, seed: int) -> None:
    wait_s = Backoff(base_s=0.1, max_s=2).wait_s(attempt, remaining_s, random.Random(seed))
    assert wait_s is None or 0 <= wait_s <= min(2, 0.1 * 2 ** min(attempt, 10))
    assert wait_s is None or wait_s < remaining_s


def test_waits_are_spread_over_the_whole_range() -> None:
    draw = random.Random(0)
    waits = [Backoff(base_s=0.1, max_s=1).wait_s(3, 60, draw) or 0 for _ in range(1000)]
    assert min(waits) < 0.01
    assert max(waits) > 0.79
    assert 0.38 < sum(waits) / 1000 < 0.42


@pytest.mark.parametrize("code", list(ErrorCode))
def test_which_errors_may_be_retried_elsewhere(code: ErrorCode) -> None:
    elsewhere = {ErrorCode.QUEUE_FULL, ErrorCode.MACHINE_OFFLINE, ErrorCode.RUNTIME_UNAVAILABLE}
    assert may_retry(code, delivered=False) == (code in elsewhere)
    assert not may_retry(code, delivered=True)
    assert TABLE[code].retryable or code not in elsewhere
