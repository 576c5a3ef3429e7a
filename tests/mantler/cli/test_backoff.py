"""Delays before restarts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mantler.cli.backoff import Backoff, BackoffPolicy

POLICY = BackoffPolicy(first_s=1.0, factor=2.0, max_s=5.0, healthy_s=60.0)


def test_it_grows_to_its_bound() -> None:
    backoff = Backoff(POLICY)
    assert [backoff.after_exit(0.0) for _ in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]


def test_a_healthy_period_resets_it() -> None:
    backoff = Backoff(POLICY)
    assert [backoff.after_exit(served_s) for served_s in (0, 0, 59.9, 60, 0)] == [1.0, 2.0, 4.0, 1.0, 2.0]


@given(st.lists(st.floats(0, 1e6), max_size=50))
def test_it_stays_in_its_bounds(served: list[float]) -> None:
    backoff = Backoff(POLICY)
    assert all(POLICY.first_s <= backoff.after_exit(served_s) <= POLICY.max_s for served_s in served)
