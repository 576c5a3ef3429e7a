"""The directory shows the same whatever order events come in, and nobody who is not there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mantler.errors import ErrorCode, MantlerError
from mantler.mesh.directory import Change, Directory, MachineChange
from mantler.mesh.indexed_set import IndexedSet
from mantler.mesh.machine import LoadReport, Machine, MachineId
from mantler.mesh.membership import Event, Left, Registered, Renewed, Version
from mantler.messages import ModelState
from tests.mantler.mesh.machines import MODEL, machine, mantle, registered, report

A = MachineId("a")
NAMES = ["a", "b", "c"]
MODELS = ["one", "two"]
ends = st.integers(0, 40).map(float)
epochs = st.integers(1, 3)


def facts(name: str, version: Version) -> Machine:
    """One version always says the same."""
    bits = 7 * version.epoch + version.revision
    states = [ModelState.READY if bits & 1 else ModelState.LOADING, ModelState.READY]
    mantles = [mantle(model, state) for model, state in zip(MODELS, states, strict=True)]
    return Machine(MachineId(name), f"{name}:{bits}", tuple(mantles[: 1 + bits % 2]), draining=bits % 5 == 0)


names = st.sampled_from(NAMES)
versions = st.builds(Version, epochs, st.integers(1, 3))
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(lambda name, version, end: Registered(facts(name, version), version, end), names, versions, ends),
    st.builds(lambda name, epoch, end: Renewed(MachineId(name), epoch, end), names, epochs, ends),
    st.builds(lambda name, epoch, number: report(name, number, 10 * number, epoch), names, epochs, st.integers(1, 5)),
    st.builds(lambda name, version: Left(MachineId(name), version), names, versions),
)


class Mirror:
    """Knows only what the changes say."""

    def __init__(self, directory: Directory) -> None:
        self.machines: dict[MachineId, Machine] = {}
        self.reports: dict[MachineId, LoadReport] = {}
        directory.subscribe(self.take)

    def take(self, change: Change) -> None:
        if isinstance(change, LoadReport):
            assert change.machine_id in self.machines
            self.reports[change.machine_id] = change
            return
        assert self.machines.get(change.machine_id) == change.before
        assert change.before != change.after
        if change.after:
            self.machines[change.machine_id] = change.after
        else:
            del self.machines[change.machine_id]
            self.reports.pop(change.machine_id, None)


def view(directory: Directory) -> object:
    online = sorted(directory.online(), key=lambda machine: machine.id)
    serving = {model: sorted(directory.serving(model)) for model in directory.models()}
    return online, serving, {model: directory.knows(model) for model in MODELS}, len(directory)


@given(st.lists(events, max_size=12))
def test_any_order_makes_the_same_view(heard: list[Event]) -> None:
    orders = [heard, sorted(heard, key=str), heard[::-1], [*heard, *heard]]
    views, reports = [], []
    for order in orders:
        directory = Directory()
        mirror = Mirror(directory)
        for event in order:
            directory.apply(event, now_s=10)
        views.append(view(directory))
        reports.append(mirror.reports)
        assert sorted(mirror.machines) == sorted(one.id for one in directory.online())
    assert all(other == views[0] for other in views)
    assert all(other == reports[0] for other in reports)


class Life(RuleBasedStateMachine):
    """Events at random times, held against a model that recalculates everything."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Directory(forget_after_s=1000)
        self.mirror = Mirror(self.directory)
        self.now_s = 0.0
        self.registered: dict[MachineId, tuple[Version, Machine]] = {}
        self.left: dict[MachineId, Version] = {}
        self.leases: dict[MachineId, tuple[int, float]] = {}
        self.reported: dict[MachineId, int] = {}

    @rule(event=events)
    def hear(self, event: Event) -> None:
        self.directory.apply(event, self.now_s)
        match event:
            case Registered(one, version, until_s):
                if one.id not in self.registered or version > self.registered[one.id][0]:
                    self.registered[one.id] = version, one
                self.leases[one.id] = max(self.leases.get(one.id, (0, 0.0)), (version.epoch, until_s))
            case Renewed(name, epoch, until_s):
                self.leases[name] = max(self.leases.get(name, (0, 0.0)), (epoch, until_s))
            case Left(name, version):
                self.left[name] = max(self.left.get(name, version), version)
            case LoadReport(name, epoch):
                self.reported[name] = max(self.reported.get(name, 0), epoch)

    @rule(passed_s=st.integers(1, 15))
    def wait(self, passed_s: int) -> None:
        self.now_s += passed_s
        self.directory.expire(self.now_s)

    def is_online(self, name: MachineId) -> bool:
        if name not in self.registered:
            return False
        version, _ = self.registered[name]
        epoch, until_s = self.leases[name]
        if epoch != version.epoch or self.reported.get(name, 0) > version.epoch:
            return False
        return until_s > self.now_s and not self.left.get(name, Version(0, 0)) >= version

    @invariant()
    def no_ghosts_and_none_missing(self) -> None:
        expected = {name: one for name, (_, one) in self.registered.items() if self.is_online(name)}
        assert self.mirror.machines == expected
        assert {one.id: one for one in self.directory.online()} == expected
        for model in MODELS:
            serving = [name for name, one in expected.items() if model in [mantle.model for mantle in one.serving]]
            assert sorted(self.directory.serving(model)) == sorted(serving)


TestLife = Life.TestCase


def test_a_lease_that_ends_makes_a_machine_offline_and_a_renewal_brings_it_back() -> None:
    directory = Directory()
    directory.apply(registered(machine("a"), until_s=10), now_s=0)
    assert directory.expire(9.9) == ()
    assert directory.expire(10) == (MachineChange(A, machine("a"), None),)
    assert not directory.serving(MODEL)
    assert directory.knows(MODEL)
    assert directory.apply(Renewed(A, 1, 30), now_s=20) == (MachineChange(A, None, machine("a")),)
    assert list(directory.serving(MODEL)) == [A]


def test_a_shorter_lease_of_a_new_life_counts() -> None:
    directory = Directory()
    directory.apply(registered(machine("a"), until_s=100), now_s=0)
    directory.apply(registered(machine("a"), epoch=2, until_s=20), now_s=10)
    assert directory.expire(20) == (MachineChange(A, machine("a"), None),)


def test_a_runtime_that_starts_anew_was_offline_in_between() -> None:
    directory = Directory()
    mirror = Mirror(directory)
    directory.apply(registered(machine("a"), epoch=1), now_s=0)
    directory.apply(report("a", 9, 5000, epoch=1), now_s=0)
    changes = directory.apply(registered(machine("a"), epoch=2), now_s=1)
    assert changes == (MachineChange(A, machine("a"), None), MachineChange(A, None, machine("a")))
    assert mirror.reports == {}
    assert list(directory.serving(MODEL)) == [A]
    assert len(directory) == 1


def test_a_report_of_a_later_life_ends_the_earlier_one() -> None:
    directory = Directory()
    mirror = Mirror(directory)
    directory.apply(registered(machine("a"), epoch=1), now_s=0)
    directory.apply(report("a", 9, 5000, epoch=1), now_s=0)
    assert directory.apply(report("a", 1, 7, epoch=2), now_s=1) == (MachineChange(A, machine("a"), None),)
    assert directory.apply(Renewed(A, 1, 1e9), now_s=1) == ()
    directory.apply(registered(machine("a"), epoch=2), now_s=2)
    assert mirror.reports == {A: report("a", 1, 7, epoch=2)}


def test_a_renewal_of_an_earlier_life_is_nothing() -> None:
    directory = Directory()
    directory.apply(registered(machine("a"), epoch=2, until_s=10), now_s=0)
    directory.apply(Renewed(A, 1, 99), now_s=5)
    assert directory.expire(10)


def test_a_machine_that_left_stays_away_until_it_registers_anew() -> None:
    directory = Directory()
    directory.apply(registered(machine("a"), revision=1), now_s=0)
    directory.apply(Left(A, Version(1, 2)), now_s=1)
    directory.apply(registered(machine("a"), revision=2), now_s=2)
    assert directory.get(A) is None
    directory.apply(registered(machine("a"), revision=3), now_s=3)
    assert directory.get(A) == machine("a")


def test_a_lost_source_of_membership_keeps_machines_online() -> None:
    directory = Directory()
    directory.apply(registered(machine("a"), until_s=10), now_s=0)
    directory.apply(registered(machine("b"), until_s=10), now_s=0)
    directory.apply(registered(machine("gone"), until_s=1), now_s=0)
    directory.expire(1)
    directory.suspend_expiry()
    assert directory.expire(1000) == ()
    directory.apply(report("a", 1, 100), now_s=1000)
    directory.apply(report("gone", 1, 100), now_s=1000)
    assert {one.id for one in directory.online()} == {"a", "b"}
    directory.resume_expiry(now_s=1000, grace_s=30)
    directory.apply(Renewed(A, 1, 1060), now_s=1010)
    assert directory.expire(1029) == ()
    assert directory.expire(1030) == (MachineChange(MachineId("b"), machine("b"), None),)
    assert list(directory.serving(MODEL)) == [A]


def test_old_reports_are_ignored() -> None:
    directory = Directory()
    directory.apply(registered(machine("a"), epoch=2), now_s=0)
    assert directory.apply(report("a", 5, 100, epoch=2), now_s=0)
    assert not directory.apply(report("a", 5, 200, epoch=2), now_s=0)
    assert not directory.apply(report("a", 4, 200, epoch=2), now_s=0)
    assert not directory.apply(report("a", 99, 200, epoch=1), now_s=0)
    assert directory.apply(report("a", 6, 200, epoch=2), now_s=0)


def test_mantles_that_are_not_ready_and_machines_that_drain_do_not_serve() -> None:
    directory = Directory()
    directory.apply(registered(machine("a", mantle(state=ModelState.LOADING))), now_s=0)
    assert not directory.serving(MODEL)
    directory.apply(registered(machine("a"), revision=2), now_s=0)
    assert list(directory.serving(MODEL)) == [A]
    directory.apply(registered(machine("a", draining=True), revision=3), now_s=0)
    assert not directory.serving(MODEL)
    assert directory.has(A, MODEL)
    assert not directory.has(A, "other")


def test_what_is_offline_is_forgotten_in_time() -> None:
    directory = Directory(forget_after_s=60)
    directory.apply(registered(machine("a"), until_s=10), now_s=0)
    directory.apply(report("never-registered", 1, 1), now_s=0)
    directory.expire(10)
    directory.expire(69)
    assert directory.knows(MODEL)
    directory.expire(70)
    assert not directory.knows(MODEL)
    assert not directory.has(A, MODEL)


def test_as_many_machines_as_are_allowed() -> None:
    directory = Directory(max_machines=2)
    directory.apply(registered(machine("a"), until_s=10), now_s=0)
    directory.apply(registered(machine("b")), now_s=0)
    with pytest.raises(MantlerError) as refused:
        directory.apply(registered(machine("c")), now_s=0)
    assert refused.value.code is ErrorCode.RUNTIME_UNAVAILABLE
    directory.expire(10)
    directory.apply(registered(machine("c")), now_s=10)
    assert {one.id for one in directory.online()} == {"b", "c"}


def test_a_subscription_ends() -> None:
    directory = Directory()
    heard: list[Change] = []
    unsubscribe = directory.subscribe(heard.append)
    directory.apply(registered(machine("a")), now_s=0)
    unsubscribe()
    directory.apply(registered(machine("b")), now_s=0)
    assert heard == [MachineChange(A, None, machine("a"))]


def test_facts_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="slots: must be at least 1"):
        mantle(slots=0)
    with pytest.raises(ValueError, match="at most one for a model"):
        machine("a", mantle(), mantle())


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8))))
def test_indexed_set(steps: list[tuple[bool, int]]) -> None:
    indexed: IndexedSet[int] = IndexedSet()
    model: set[int] = set()
    for adds, member in steps:
        (indexed.add if adds else indexed.discard)(member)
        (model.add if adds else model.discard)(member)
        assert sorted(indexed) == sorted(model)
        assert [indexed[place] for place in range(len(indexed))] == list(indexed)
        assert all((one in indexed) == (one in model) for one in range(9))
