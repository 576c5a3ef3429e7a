"""Circuits open, let one probe through, and close."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mantler.errors import ErrorCode
from mantler.mesh.breaker import Breaker, BreakerSettings, BreakerState, Outcome, outcome

SETTINGS = BreakerSettings(consecutive_failures=3, min_requests=10, window_s=10, open_s=1, max_open_s=8)


def fail(breaker: Breaker, now_s: float, times: int = 1) -> None:
    for _ in range(times):
        breaker.record(breaker.begin(now_s), Outcome.FAILURE, now_s)


def succeed(breaker: Breaker, now_s: float, times: int = 1) -> None:
    for _ in range(times):
        breaker.record(breaker.begin(now_s), Outcome.SUCCESS, now_s)


def test_failures_in_a_row_open_it() -> None:
    breaker = Breaker(SETTINGS)
    fail(breaker, 0, times=2)
    succeed(breaker, 0)
    fail(breaker, 0, times=2)
    assert breaker.state(0) is BreakerState.CLOSED
    fail(breaker, 0)
    assert breaker.state(0) is BreakerState.OPEN
    assert not breaker.available(0.99)
    assert breaker.available(1)


def test_a_share_of_failures_opens_it_only_within_the_window() -> None:
    def alternate(breaker: Breaker, gap_s: float) -> BreakerState:
        for number in range(10):
            (succeed if number % 2 == 0 else fail)(breaker, number * gap_s)
        return breaker.state(9 * gap_s)

    assert alternate(Breaker(SETTINGS), gap_s=0.5) is BreakerState.OPEN
    assert alternate(Breaker(SETTINGS), gap_s=2) is BreakerState.CLOSED


def test_one_probe_at_a_time() -> None:
    breaker = Breaker(SETTINGS)
    fail(breaker, 0, times=3)
    permit = breaker.begin(1)
    assert breaker.state(1) is BreakerState.HALF_OPEN
    assert not breaker.available(1)
    breaker.record(permit, Outcome.NEITHER, 2)
    assert breaker.available(2)
    breaker.record(breaker.begin(2), Outcome.SUCCESS, 3)
    assert breaker.state(3) is BreakerState.CLOSED


def test_a_probe_that_is_never_heard_of_does_not_keep_others_out() -> None:
    breaker = Breaker(SETTINGS)
    fail(breaker, 0, times=3)
    lost = breaker.begin(1)
    assert not breaker.available(30.9)
    assert breaker.available(31)
    probe = breaker.begin(31)
    breaker.record(lost, Outcome.SUCCESS, 32)
    assert breaker.state(32) is BreakerState.HALF_OPEN
    breaker.record(probe, Outcome.SUCCESS, 32)
    assert breaker.state(32) is BreakerState.CLOSED


def test_the_time_that_it_is_open_doubles_up_to_a_bound() -> None:
    breaker = Breaker(SETTINGS)
    fail(breaker, 0, times=3)
    now_s, waits = 0.0, []
    for _ in range(5):
        waits.append(next(wait for wait in range(1, 100) if breaker.available(now_s + wait)))
        now_s += waits[-1]
        fail(breaker, now_s)
    assert waits == [1, 2, 4, 8, 8]


@pytest.mark.parametrize(("well_for_s", "open_for_s"), [(1, 4), (10, 1)])
def test_a_machine_that_fails_again_soon_waits_longer(well_for_s: float, open_for_s: float) -> None:
    breaker = Breaker(SETTINGS)
    fail(breaker, 0, times=3)
    fail(breaker, 1)
    succeed(breaker, 3)
    fail(breaker, 3 + well_for_s, times=3)
    assert not breaker.available(3 + well_for_s + open_for_s - 0.01)
    assert breaker.available(3 + well_for_s + open_for_s)


def test_late_outcomes_of_requests_from_before_say_nothing() -> None:
    breaker = Breaker(SETTINGS)
    late = [breaker.begin(0) for _ in range(6)]
    for permit in late[:3]:
        breaker.record(permit, Outcome.FAILURE, 0)
    for permit in late[3:]:
        breaker.record(permit, Outcome.SUCCESS, 0.5)
    assert breaker.state(0.5) is BreakerState.OPEN


@pytest.mark.parametrize("code", list(ErrorCode))
def test_only_errors_of_the_machine_count(code: ErrorCode) -> None:
    at_fault = code in {ErrorCode.MACHINE_OFFLINE, ErrorCode.RUNTIME_UNAVAILABLE, ErrorCode.INTERNAL_ERROR}
    assert outcome(code) is (Outcome.FAILURE if at_fault else Outcome.NEITHER)


def test_no_error_is_a_success() -> None:
    assert outcome(None) is Outcome.SUCCESS


@given(st.lists(st.sampled_from([Outcome.SUCCESS, Outcome.NEITHER])))
def test_without_failures_it_stays_closed(outcomes: list[Outcome]) -> None:
    breaker = Breaker(SETTINGS)
    for now_s, heard in enumerate(outcomes):
        breaker.record(breaker.begin(now_s), heard, now_s)
        assert breaker.available(now_s)


class Circuit(RuleBasedStateMachine):
    """Requests begin and end at any time, or never."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(SETTINGS)
        self.now_s = 0.0
        self.permits: list[int] = []

    @rule(passed_s=st.sampled_from([0.1, 1.0, 5.0, 31.0]))
    def wait(self, passed_s: float) -> None:
        self.now_s += passed_s

    @precondition(lambda self: self.breaker.available(self.now_s))
    @rule()
    def begin(self) -> None:
        half_open = self.breaker.state(self.now_s) is BreakerState.HALF_OPEN
        self.permits.append(self.breaker.begin(self.now_s))
        if half_open:
            assert not self.breaker.available(self.now_s), "a second probe beside the first"

    @precondition(lambda self: self.permits)
    @rule(place=st.integers(0, 10), heard=st.sampled_from(Outcome))
    def end(self, place: int, heard: Outcome) -> None:
        permit = self.permits.pop(place % len(self.permits))
        self.breaker.record(permit, heard, self.now_s)

    @invariant()
    def it_always_becomes_available(self) -> None:
        assert self.breaker.available(self.now_s + max(SETTINGS.max_open_s, SETTINGS.probe_timeout_s))
        if self.breaker.state(self.now_s) is BreakerState.CLOSED:
            assert self.breaker.available(self.now_s)
        if self.breaker.state(self.now_s) is BreakerState.OPEN:
            assert not self.breaker.available(self.now_s)


TestCircuit = Circuit.TestCase
