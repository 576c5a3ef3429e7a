"""Choices: only machines that may be chosen, always one if there is one, and neither too busy nor always the same."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mantler.mesh.balancer import Assignment, Balancer, BalancerSettings, Refusal, Request
from mantler.mesh.breaker import BreakerSettings, BreakerState, Outcome
from mantler.mesh.directory import Directory
from mantler.mesh.machine import MachineId
from mantler.mesh.membership import Left, Renewed, Version
from mantler.mesh.prefix import NO_PREFIX, Prefix, chain
from tests.mantler.mesh.machines import MODEL, machine, mantle, mesh, registered, report

M0, M1 = MachineId("m0"), MachineId("m1")


def balancer(directory: Directory, max_hashes: int = 10_000) -> Balancer:
    return Balancer(directory, random.Random(0), BalancerSettings(max_hashes=max_hashes))


def request(
    prefix: Prefix = NO_PREFIX, tokens: int = 500, allowed: set[str] | None = None, excluded: set[str] | None = None
) -> Request:
    return Request(
        MODEL,
        tokens,
        prefix,
        None if allowed is None else frozenset(map(MachineId, allowed)),
        frozenset(map(MachineId, excluded or set())),
    )


def chosen(balancer: Balancer, wanted: Request, now_s: float = 0) -> Assignment:
    choice = balancer.choose(wanted, now_s)
    assert isinstance(choice, Assignment), choice
    return choice


def text(number: int, size: int = 4096) -> Prefix:
    return chain([random.Random(number).randbytes(size)], b"")


def break_circuit(balancer: Balancer, name: str, now_s: float = 0) -> None:
    for _ in range(BreakerSettings().consecutive_failures):
        balancer.settle(chosen(balancer, request(allowed={name}), now_s), Outcome.FAILURE, now_s)
    assert balancer.circuit(MachineId(name), now_s) is BreakerState.OPEN


def test_refusals_say_why() -> None:
    directory = mesh(3)
    directory.apply(registered(machine("x", mantle("other"))), now_s=0)
    directory.apply(registered(machine("slow", draining=True)), now_s=0)
    chooser = balancer(directory)
    assert chooser.choose(Request("unheard-of", 1), 0) is Refusal.NO_SUCH_MODEL
    assert chooser.choose(request(allowed={"x"}), 0) is Refusal.NONE_ALLOWED
    assert chooser.choose(request(allowed=set()), 0) is Refusal.NONE_ALLOWED
    assert chooser.choose(request(allowed={"slow"}), 0) is Refusal.NONE_HEALTHY
    assert chooser.choose(request(excluded={"m0", "m1", "m2"}), 0) is Refusal.ALL_EXCLUDED
    assert chooser.choose(request(allowed={"m0"}, excluded={"m0"}), 0) is Refusal.ALL_EXCLUDED
    for name in ("m0", "m1", "m2"):
        break_circuit(chooser, name)
    assert chooser.choose(request(), 0) is Refusal.NONE_HEALTHY
    assert chooser.in_flight == 0


def test_a_model_whose_machines_are_offline_is_not_unknown() -> None:
    directory = Directory(forget_after_s=60)
    directory.apply(registered(machine("m0"), until_s=10), now_s=0)
    chooser = balancer(directory)
    assert chosen(chooser, request(), now_s=9)
    assert chooser.choose(request(), 10) is Refusal.NONE_HEALTHY
    assert chooser.choose(request(allowed={"m0"}), 11) is Refusal.NONE_HEALTHY
    assert chooser.choose(request(), 70) is Refusal.NO_SUCH_MODEL


def test_a_machine_that_comes_back_is_used_again_with_a_closed_circuit() -> None:
    directory = Directory()
    directory.apply(registered(machine("m0"), until_s=10), now_s=0)
    chooser = balancer(directory)
    before = chosen(chooser, request())
    break_circuit(chooser, "m0")
    directory.expire(10)
    assert chooser.circuit(M0, 10) is None
    directory.apply(Renewed(M0, 1, 30), now_s=11)
    assert chosen(chooser, request(), now_s=11).machine.id == M0
    chooser.settle(before, Outcome.FAILURE, 11)
    assert chooser.circuit(M0, 11) is BreakerState.CLOSED


def test_a_probe_closes_the_circuit_when_the_machine_answers() -> None:
    chooser = balancer(mesh(1))
    break_circuit(chooser, "m0")
    probe = chosen(chooser, request(), now_s=1)
    assert chooser.choose(request(), 1) is Refusal.NONE_HEALTHY
    chooser.answered(probe, 2)
    assert chooser.circuit(M0, 2) is BreakerState.CLOSED
    assert chosen(chooser, request(), now_s=2)


def test_a_choice_counts_at_once_and_until_it_is_settled() -> None:
    chooser = balancer(mesh(4))
    assignments = [chosen(chooser, request()) for _ in range(400)]
    assert sum(chooser.load_tokens(MachineId(f"m{number}")) for number in range(4)) == 400 * 500
    counts = Counter(one.machine.id for one in assignments)
    assert max(counts.values()) < 1.05 * 100
    for one in assignments:
        chooser.settle(one, Outcome.SUCCESS, 0)
    assert not any(chooser.load_tokens(MachineId(f"m{number}")) for number in range(4))
    with pytest.raises(KeyError):
        chooser.settle(assignments[0], Outcome.SUCCESS, 0)


def test_the_same_beginning_goes_to_the_same_machine() -> None:
    chooser = balancer(mesh(100))
    first = chosen(chooser, request(text(1)))
    assert first.matched_bytes == 0
    again = chosen(chooser, request(text(1)))
    assert again.machine == first.machine
    assert again.matched_bytes == 4096


def test_the_deepest_match_wins() -> None:
    chooser = balancer(mesh(2))
    begin = random.Random(1).randbytes(2048)
    short, long = chain([begin], b""), chain([begin, b"x" * 2048], b"")
    chosen(chooser, request(long, allowed={"m0"}))
    chosen(chooser, request(short, allowed={"m1"}, tokens=1))
    assert chosen(chooser, request(long)).machine.id == M0


def test_a_short_match_does_not_attract() -> None:
    chooser = balancer(mesh(50))
    system = random.Random(1).randbytes(512)
    prefixes = [chain([system, random.Random(number).randbytes(4000)], b"") for number in range(50)]
    assert all(chosen(chooser, request(prefix)).matched_bytes == 0 for prefix in prefixes)


def test_a_hot_prefix_is_replicated_and_overloads_nobody() -> None:
    chooser = balancer(mesh(10))
    counts = Counter(chosen(chooser, request(text(1))).machine.id for _ in range(1000))
    assert len(counts) == 10
    assert max(counts.values()) < 1.25 * 100
    counts.update(chosen(chooser, request(text(2))).machine.id for _ in range(20))
    assert max(counts.values()) < 1.25 * 102


def test_a_hit_does_not_go_to_a_machine_that_others_keep_busy() -> None:
    directory = mesh(4)
    chooser = balancer(directory)
    first = chosen(chooser, request(text(1)))
    directory.apply(report(first.machine.id, 1, 100_000), now_s=0)
    assert chosen(chooser, request(text(1))).machine != first.machine


def test_misses_are_spread_though_one_machine_is_the_emptiest() -> None:
    directory = mesh(10)
    for number in range(1, 10):
        directory.apply(report(f"m{number}", 1, 1_000_000), now_s=0)
    chooser = balancer(directory)
    counts = Counter(chosen(chooser, request(text(number))).machine.id for number in range(1000))
    assert 0.1 < counts[M0] / 1000 < 0.3


def test_an_idle_mesh_uses_all_its_machines() -> None:
    chooser = balancer(mesh(2))
    counts: Counter[str] = Counter()
    for _ in range(200):
        assignment = chosen(chooser, request())
        counts[assignment.machine.id] += 1
        chooser.settle(assignment, Outcome.SUCCESS, 0)
    assert min(counts.values()) > 60


def test_slots_weigh() -> None:
    directory = Directory()
    directory.apply(registered(machine("m0", mantle(slots=8))), now_s=0)
    directory.apply(registered(machine("m1", mantle(slots=24))), now_s=0)
    chooser = balancer(directory)
    counts = Counter(chosen(chooser, request()).machine.id for _ in range(400))
    assert 95 <= counts[M0] <= 105


def test_affinity_of_a_key_with_few_machines_is_measured_by_these() -> None:
    chooser = balancer(mesh(100))
    counts = Counter(
        chosen(chooser, request(text(number % 20), allowed={"m0", "m1"})).machine.id for number in range(400)
    )
    assert max(counts.values()) < 1.3 * 200
    assert chosen(chooser, request(text(1), allowed={"m0", "m1"})).matched_bytes == 4096


def test_memory_is_bounded() -> None:
    chooser = balancer(mesh(3), max_hashes=100)
    for number in range(200):
        chooser.settle(chosen(chooser, request(text(number))), Outcome.SUCCESS, 0)
    assert chooser.remembered_hashes == 100
    assert chooser.in_flight == 0


def test_what_is_remembered_of_a_model_ends_with_its_last_machine() -> None:
    directory = mesh(1)
    chooser = balancer(directory)
    chosen(chooser, request(text(1)))
    assert chooser.remembered_hashes
    directory.apply(Left(M0, Version(1, 1)), now_s=0)
    assert not chooser.remembered_hashes


names = [f"m{number}" for number in range(6)]
some_names = st.sets(st.sampled_from(names))


@settings(max_examples=200)
@given(st.integers(1, 60), st.data())
def test_one_is_chosen_whenever_one_can_be(count: int, data: st.DataObject) -> None:
    everyone = [f"m{number}" for number in range(count)]
    allowed = data.draw(st.none() | st.sets(st.sampled_from(everyone)))
    excluded = data.draw(st.sets(st.sampled_from(everyone)))
    chooser = balancer(mesh(count))
    choice = chooser.choose(request(text(1), allowed=allowed, excluded=excluded), 0)
    candidates = (set(everyone) if allowed is None else allowed) - excluded
    assert isinstance(choice, Assignment) == bool(candidates)
    assert not isinstance(choice, Assignment) or choice.machine.id in candidates


class Facade(RuleBasedStateMachine):
    """Machines come, go, drain and fail, while requests begin and end."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Directory()
        self.balancer = balancer(self.directory, max_hashes=64)
        self.now_s = 0.0
        self.revision = 0
        self.in_flight: list[Assignment] = []

    @rule(name=st.sampled_from(names), draining=st.booleans(), slots=st.integers(1, 9), lease_s=st.integers(1, 20))
    def register(self, name: str, draining: bool, slots: int, lease_s: int) -> None:
        self.revision += 1
        one = machine(name, mantle(slots=slots), draining=draining)
        self.directory.apply(registered(one, revision=self.revision, until_s=self.now_s + lease_s), self.now_s)

    @rule(name=st.sampled_from(names))
    def leave(self, name: str) -> None:
        self.directory.apply(Left(MachineId(name), Version(1, self.revision)), self.now_s)

    @rule(name=st.sampled_from(names), tokens=st.integers(0, 10_000))
    def hear(self, name: str, tokens: int) -> None:
        self.revision += 1
        self.directory.apply(report(name, self.revision, tokens), self.now_s)

    @rule(passed_s=st.sampled_from([0.1, 1.0, 10.0]))
    def wait(self, passed_s: float) -> None:
        self.now_s += passed_s

    @rule(number=st.integers(0, 5), allowed=st.none() | some_names, excluded=some_names)
    def choose(self, number: int, allowed: set[str] | None, excluded: set[str]) -> None:
        self.directory.expire(self.now_s)
        healthy = {
            one
            for one in self.directory.serving(MODEL)
            if self.balancer.circuit(one, self.now_s) in (BreakerState.CLOSED, BreakerState.HALF_OPEN)
        }
        certain = {one for one in healthy if self.balancer.circuit(one, self.now_s) is BreakerState.CLOSED}
        choice = self.balancer.choose(request(text(number), 300, allowed, excluded), self.now_s)
        may = (set(names) if allowed is None else allowed) - excluded
        if isinstance(choice, Assignment):
            assert choice.machine.id in may & healthy
            assert choice.machine == self.directory.get(choice.machine.id)
            self.in_flight.append(choice)
        else:
            assert not may & certain, choice

    @precondition(lambda self: self.in_flight)
    @rule(place=st.integers(0, 30), outcome=st.sampled_from(Outcome), answers=st.booleans())
    def settle(self, place: int, outcome: Outcome, answers: bool) -> None:
        assignment = self.in_flight.pop(place % len(self.in_flight))
        if answers:
            self.balancer.answered(assignment, self.now_s)
        self.balancer.settle(assignment, outcome, self.now_s)

    @invariant()
    def bounded(self) -> None:
        assert self.balancer.in_flight == len(self.in_flight)
        assert self.balancer.remembered_hashes <= 64


TestFacade = Facade.TestCase
