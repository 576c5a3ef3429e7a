"""Loads: what this facade sends counts at once, what others send when a report says so."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mantler.mesh.directory import Directory
from mantler.mesh.load import Loads, estimate_tokens, noticeable
from mantler.mesh.machine import LoadReport, MachineId, ModelLoad
from mantler.mesh.membership import Left, Version
from tests.mantler.mesh.machines import MODEL, machine, mantle, mesh, registered, report

M0 = MachineId("m0")


def test_an_estimate() -> None:
    assert estimate_tokens(4000, 100) == 1100
    assert estimate_tokens(4000, None) == estimate_tokens(4000, 100_000) == 1256
    assert estimate_tokens(0, 0) == 1


def test_a_report_counts_only_what_others_have_sent() -> None:
    directory = mesh(2)
    loads = Loads(directory)
    loads.begin(M0, 300)
    directory.apply(report("m0", 1, 1000), now_s=0)
    assert loads.tokens(M0) == 1000
    loads.begin(M0, 50)
    assert loads.tokens(M0) == 1050
    loads.end(M0, 300)
    loads.end(M0, 50)
    assert loads.tokens(M0) == 700
    directory.apply(report("m0", 2, 0), now_s=0)
    assert loads.tokens(M0) == 0


def test_what_others_sent_ends_with_the_life_of_a_runtime() -> None:
    directory = mesh(2)
    loads = Loads(directory)
    loads.begin(M0, 300)
    directory.apply(report("m0", 1, 1000), now_s=0)
    directory.apply(registered(machine("m0"), epoch=2), now_s=0)
    assert loads.tokens(M0) == 300


def test_loads_are_compared_per_slot() -> None:
    directory = Directory()
    directory.apply(registered(machine("m0", mantle(slots=10), mantle("other", slots=2))), now_s=0)
    directory.apply(registered(machine("m1", mantle(slots=30))), now_s=0)
    loads = Loads(directory)
    loads.begin(M0, 100)
    assert loads.per_slot(MODEL, M0) == 10
    assert loads.per_slot("other", M0) == loads.mean_per_slot("other") == 50
    assert loads.mean_per_slot(MODEL) == 2.5


class Sums(RuleBasedStateMachine):
    """The sums of a pool are those of its machines, whatever happens."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Directory()
        self.loads = Loads(self.directory)
        self.revision = 0
        self.in_flight: list[tuple[MachineId, int]] = []

    @rule(number=st.integers(0, 3), slots=st.integers(1, 5), both=st.booleans(), draining=st.booleans())
    def register(self, number: int, slots: int, both: bool, draining: bool) -> None:
        self.revision += 1
        mantles = [mantle(slots=slots), mantle("other", slots=2 * slots)][: 1 + both]
        one = machine(f"m{number}", *mantles, draining=draining)
        self.directory.apply(registered(one, revision=self.revision), now_s=0)

    @rule(number=st.integers(0, 3))
    def leave(self, number: int) -> None:
        self.directory.apply(Left(MachineId(f"m{number}"), Version(1, self.revision)), now_s=0)

    @rule(number=st.integers(0, 3), tokens=st.integers(0, 500))
    def hear(self, number: int, tokens: int) -> None:
        self.revision += 1
        self.directory.apply(report(f"m{number}", self.revision, tokens), now_s=0)

    @precondition(lambda self: self.directory.serving(MODEL))
    @rule(place=st.integers(0, 3), tokens=st.integers(1, 100))
    def begin(self, place: int, tokens: int) -> None:
        serving = self.directory.serving(MODEL)
        self.in_flight.append((serving[place % len(serving)], tokens))
        self.loads.begin(*self.in_flight[-1])

    @precondition(lambda self: self.in_flight)
    @rule(place=st.integers(0, 20))
    def end(self, place: int) -> None:
        self.loads.end(*self.in_flight.pop(place % len(self.in_flight)))

    @invariant()
    def sums_agree(self) -> None:
        for model in (MODEL, "other"):
            serving = self.directory.serving(model)
            if serving:
                tokens = sum(self.loads.tokens(one) for one in serving)
                slots = sum(self.loads.slots(model, one) for one in serving)
                assert self.loads.mean_per_slot(model) == tokens / slots
        for one in {name for name, _ in self.in_flight}:
            assert self.loads.tokens(one) >= sum(tokens for name, tokens in self.in_flight if name == one)


TestSums = Sums.TestCase


@pytest.mark.parametrize(
    ("before", "now", "noticed"),
    [
        ((10, 0, 10_000), (10, 0, 10_000), False),
        ((10, 0, 10_000), (11, 0, 11_000), False),
        ((10, 0, 10_000), (11, 0, 11_001), True),
        ((10, 0, 10_000), (9, 0, 8_999), True),
        ((2, 0, 500), (2, 0, 756), False),
        ((2, 0, 500), (2, 0, 757), True),
        ((0, 0, 0), (1, 0, 1), True),
        ((1, 0, 1), (0, 0, 0), True),
        ((10, 0, 10_000), (10, 1, 10_100), True),
    ],
)
def test_a_change_that_matters_is_noticed(
    before: tuple[int, int, int], now: tuple[int, int, int], noticed: bool
) -> None:
    reports = [LoadReport(M0, 1, 1, (ModelLoad("model", *load),)) for load in (before, now)]
    assert noticeable(*reports) is noticed


def test_a_model_that_comes_or_goes_is_noticed() -> None:
    one = LoadReport(M0, 1, 1, (ModelLoad("model", 1, 0, 9),))
    both = LoadReport(M0, 1, 2, (ModelLoad("model", 1, 0, 9), ModelLoad("other", 0, 0, 0)))
    assert noticeable(one, both)
    assert noticeable(both, one)
