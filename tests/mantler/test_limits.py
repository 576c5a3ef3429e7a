"""Requests and tokens per minute."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mantler.tenancy.limits import MAX_DEBT_NS, PERIOD_NS, Hold, RateLimiter

LIMITS = st.integers(1, 10_000)
GAPS_NS = st.integers(0, PERIOD_NS // 2)


class Clock:
    def __init__(self) -> None:
        self.now_ns = 10**12

    def __call__(self) -> int:
        return self.now_ns

    def wait(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


def taken(limiter: RateLimiter, limit: int, units: int = 1) -> Hold:
    hold = limiter.reserve("k", limit, units)
    assert hold is not None
    return hold


def test_a_whole_minute_at_once_and_then_evenly() -> None:
    clock = Clock()
    limiter = RateLimiter(clock)
    for _ in range(3):
        taken(limiter, 3)
    assert limiter.reserve("k", 3) is None
    state = limiter.state("k", 3)
    assert (state.limit, state.remaining, state.reset_s, state.retry_after_s) == (3, 0, 60.0, 20.0)
    clock.now_ns += 20 * 10**9 - 1
    assert limiter.reserve("k", 3) is None
    clock.now_ns += 1
    assert limiter.state("k", 3).remaining == 1
    taken(limiter, 3)
    assert limiter.reserve("other", 3) is not None


def test_what_no_limit_has_room_for_takes_all_of_it() -> None:
    clock = Clock()
    limiter = RateLimiter(clock)
    assert taken(limiter, 60, 10_000).units == 60
    assert limiter.state("k", 60, 10_000).retry_after_s == 60
    clock.wait(60)
    taken(limiter, 60, 10_000)


def test_debt_is_waited_for_and_has_a_bound() -> None:
    clock = Clock()
    limiter = RateLimiter(clock)
    taken(limiter, 60, 10)
    limiter.charge("k", 60, 110)
    state = limiter.state("k", 60)
    assert (state.remaining, state.reset_s, state.retry_after_s) == (0, 120.0, 61.0)
    limiter.charge("k", 60, 10**9)
    assert limiter.state("k", 60).reset_s == 60 + MAX_DEBT_NS / 1e9
    clock.now_ns += MAX_DEBT_NS + PERIOD_NS
    assert limiter.state("k", 60).remaining == 60


def test_what_a_long_answer_uses_in_its_time_is_no_debt() -> None:
    clock = Clock()
    limiter = RateLimiter(clock)
    taken(limiter, 60, 1)
    for _ in range(600):
        clock.wait(1)
        limiter.charge("k", 60, 1)
    assert limiter.state("k", 60).remaining == 59


def test_what_has_flowed_back_is_not_given_back_again() -> None:
    clock = Clock()
    limiter = RateLimiter(clock)
    first = taken(limiter, 60, 60)
    clock.wait(60)
    taken(limiter, 60, 60)
    limiter.refund(first, 59)
    assert limiter.reserve("k", 60) is None
    clock.wait(30)
    half = taken(limiter, 60, 30)
    clock.wait(45)  # the last 15 of them are not back yet
    limiter.refund(half, 30)
    assert limiter.state("k", 60).remaining == 60
    assert len(limiter) == 0


def test_idle_keys_are_forgotten() -> None:
    clock = Clock()
    limiter = RateLimiter(clock)
    for i in range(100_000):
        assert limiter.reserve(f"key_{i}", 60)
        clock.now_ns += 10**7  # each is idle again after a second, in which 100 others come
    assert len(limiter) < 2048


def test_those_who_only_ever_owe_are_forgotten_too() -> None:
    clock = Clock()
    limiter = RateLimiter(clock)
    for i in range(100_000):
        limiter.charge(f"key_{i}", 60, 1)
        clock.now_ns += 10**7
    assert len(limiter) < 2048


@given(limit=LIMITS, gaps_ns=st.lists(GAPS_NS, min_size=1, max_size=40), units=st.integers(1, 20_000))
def test_the_wait_is_exact(limit: int, gaps_ns: list[int], units: int) -> None:
    clock = Clock()
    limiter = RateLimiter(clock)
    for gap_ns in gaps_ns:
        clock.now_ns += gap_ns
        state = limiter.state("k", limit, units)
        assert 0 <= state.remaining <= limit
        assert (state.remaining >= min(units, limit)) == (state.retry_after_s == 0)
        wait_ns = round(state.retry_after_s * 1e9)
        if wait_ns:
            clock.now_ns += wait_ns - 1
            assert limiter.reserve("k", limit, units) is None
            clock.now_ns += 1
        taken(limiter, limit, units)
        clock.wait(limiter.state("k", limit).reset_s / 2)


@given(limit=LIMITS, asked=st.lists(st.tuples(GAPS_NS, st.integers(1, 20_000)), max_size=60))
def test_in_no_window_more_than_the_burst_and_what_flows_back(limit: int, asked: list[tuple[int, int]]) -> None:
    clock = Clock()
    limiter = RateLimiter(clock)
    admitted: list[tuple[int, int]] = []
    for gap_ns, units in asked:
        clock.now_ns += gap_ns
        hold = limiter.reserve("k", limit, units)
        if hold is not None:
            admitted.append((clock.now_ns, hold.units))
            in_window = 0
            for began_ns, before in reversed(admitted):
                in_window += before
                assert in_window <= limit + (clock.now_ns - began_ns) * limit / PERIOD_NS


@given(
    limit=LIMITS,
    before=st.lists(st.tuples(GAPS_NS, st.integers(1, 5_000)), max_size=10),
    units=st.integers(1, 20_000),
    after=st.lists(st.integers(1, 5_000), max_size=5),
)
def test_a_refund_at_once_restores(limit: int, before: list[tuple[int, int]], units: int, after: list[int]) -> None:
    clock = Clock()
    limiter, without = RateLimiter(clock), RateLimiter(clock)
    for gap_ns, charged in before:
        clock.now_ns += gap_ns
        limiter.charge("k", limit, charged)
        without.charge("k", limit, charged)
    hold = limiter.reserve("k", limit, units)
    # Others come in between, and are not concerned. Few enough for their debt not to meet its bound.
    for charged in after:
        limiter.charge("k", limit, charged % limit)
        without.charge("k", limit, charged % limit)
    if hold is not None:
        limiter.refund(hold, hold.units)
    assert limiter.state("k", limit) == without.state("k", limit)


class LifeOfAKey(RuleBasedStateMachine):
    """Requests of one key that begin, use more or less than they reserved, and end, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.limiter = RateLimiter(self.clock)
        self.limit = 100
        self.began_ns = self.clock.now_ns
        self.open: list[Hold] = []
        self.net = 0

    @rule(units=st.integers(1, 150))
    def reserve(self, units: int) -> None:
        state = self.limiter.state("k", self.limit, units)
        hold = self.limiter.reserve("k", self.limit, units)
        assert (hold is None) == (state.retry_after_s > 0) == (state.remaining < min(units, self.limit))
        if hold is None:
            assert self.limiter.state("k", self.limit, units) == state, "a refusal changes something"
            return
        assert self.limiter.state("k", self.limit).remaining == state.remaining - hold.units
        self.open.append(hold)
        self.net += hold.units
        # In integers, for a limit that is met exactly is met.
        assert self.net * PERIOD_NS <= self.limit * (PERIOD_NS + self.clock.now_ns - self.began_ns)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def refund(self, data: st.DataObject) -> None:
        hold = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        units = data.draw(st.integers(0, hold.units))
        before = self.limiter.state("k", self.limit)
        self.limiter.refund(hold, units)
        assert before.remaining <= self.limiter.state("k", self.limit).remaining <= before.remaining + units + 1
        self.net -= units

    @rule(units=st.integers(1, 500))
    def charge(self, units: int) -> None:
        before = self.limiter.state("k", self.limit)
        self.limiter.charge("k", self.limit, units)
        assert self.limiter.state("k", self.limit).remaining == max(before.remaining - units, 0)

    @rule(seconds=st.floats(0, 120))
    def wait(self, seconds: float) -> None:
        self.clock.wait(seconds)

    @rule(units=st.integers(1, 150))
    def wait_as_told(self, units: int) -> None:
        self.clock.wait(self.limiter.state("k", self.limit, units).retry_after_s)
        self.reserve(units)
        assert self.limiter.state("k", self.limit, units).remaining < self.limit

    @invariant()
    def is_bounded(self) -> None:
        state = self.limiter.state("k", self.limit)
        assert 0 <= state.remaining <= self.limit
        assert 0 <= state.reset_s <= (PERIOD_NS + MAX_DEBT_NS) / 1e9
        assert (state.reset_s == 0) <= (state.remaining == self.limit)

    def teardown(self) -> None:
        self.clock.wait(self.limiter.state("k", self.limit).reset_s)
        assert self.limiter.state("k", self.limit).remaining == self.limit


TestLifeOfAKey = LifeOfAKey.TestCase
