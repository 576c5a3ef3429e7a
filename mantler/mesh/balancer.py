"""Chooses the machine that gets a request.

In this order: a machine that serves the model and that the key may use, that was not tried already and whose circuit
is not open; of those, one that lately got the longest beginning of the same request, unless it is too busy; otherwise
the less busy one of two random ones. Two random ones because the least busy of all is the same one for everybody who
chooses before the next report (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001).

A choice costs O(chunks of the prefix) and does not grow with the machines as long as a fair share of them can be
chosen. Only where hardly any can does it look at them one by one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from mantler.mesh.affinity import AffinityIndex
from mantler.mesh.breaker import Breaker, BreakerSettings, BreakerState, Outcome
from mantler.mesh.directory import Change, Directory, MachineChange
from mantler.mesh.load import Loads
from mantler.mesh.machine import Machine, MachineId
from mantler.mesh.prefix import NO_PREFIX, Prefix, covered_bytes

_DRAWS = 16
"""Random machines that are looked at before all are. With half of them unfit, one choice in 4,000 looks at all."""
_FEW = 32
"""An allowed set as small as this is looked at whole."""


@dataclass(frozen=True, slots=True)
class BalancerSettings:
    """How affinity is weighed against load."""

    busy_ratio: float = 1.2
    """A machine is too busy for affinity above this multiple of the mean load per slot …"""
    busy_margin_tokens: int = 1024
    """… if it is also above the mean by this much. Without it, few requests at all would look like an imbalance."""
    min_match: float = 0.25
    """The share of a request that must have been there. A short common beginning saves too little."""
    max_hashes: int = 500_000
    """Remembered for each model."""
    max_machines_per_hash: int = 8
    breaker: BreakerSettings = field(default_factory=BreakerSettings)


@dataclass(frozen=True, slots=True)
class Request:
    """What a choice depends on."""

    model: str
    tokens: int
    """What it is going to hold, as :func:`mantler.mesh.load.estimate_tokens` says."""
    prefix: Prefix = NO_PREFIX
    allowed: frozenset[MachineId] | None = None
    """The machines that the key may use for this model. ``None`` is all."""
    excluded: frozenset[MachineId] = frozenset()
    """Those that were tried already."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """A request's place on a machine. Counts as its load until it is settled."""

    number: int
    machine: Machine
    tokens: int
    matched_bytes: int
    """How much of the request the machine lately got. 0 where it was chosen by load alone."""


class Refusal(Enum):
    """Why no machine was chosen."""

    NO_SUCH_MODEL = "no_such_model"
    """No machine has it, nor had it lately."""
    NONE_ALLOWED = "none_allowed"
    """Machines serve it, and the key may use none of them."""
    NONE_HEALTHY = "none_healthy"
    """Those that may be used are offline, draining or loading, or their circuits are open."""
    ALL_EXCLUDED = "all_excluded"
    """All that are healthy were tried already."""


class Balancer:
    """Chooses among the machines of ``directory`` and keeps what it needs for that.

    Every assignment must be settled exactly once.
    """

    def __init__(
        self,
        directory: Directory,
        draw: random.Random,
        settings: BalancerSettings = BalancerSettings(),
    ) -> None:
        self._directory = directory
        self._draw = draw
        self._settings = settings
        self._loads = Loads(directory)
        self._affinity: dict[str, AffinityIndex] = {}
        self._breakers: dict[MachineId, Breaker] = {}
        self._permits: dict[int, tuple[Breaker, int]] = {}
        """Of the assignments in flight."""
        self._number = 0
        for machine in directory.online():
            self._take(MachineChange(machine.id, None, machine))
        directory.subscribe(self._take)

    def choose(self, request: Request, now_s: float) -> Assignment | Refusal:
        """Chooses a machine and counts the request as its load at once."""
        self._directory.expire(now_s)
        serving = self._directory.serving(request.model)
        machines = self._narrowed(request, serving)
        if machines:
            machine_id, matched_bytes = self._by_affinity(request, machines, now_s)
            if machine_id is None:
                machine_id = self._by_load(request, machines, now_s)
            if machine_id is not None:
                return self._assign(request, machine_id, matched_bytes, now_s)
        return self._refusal(request, machines, now_s)

    def answered(self, assignment: Assignment, now_s: float) -> None:
        """The machine has begun to answer: a probe need not wait for the end."""
        breaker, permit = self._permits[assignment.number]
        if breaker.state(now_s) is BreakerState.HALF_OPEN:
            breaker.record(permit, Outcome.SUCCESS, now_s)

    def settle(self, assignment: Assignment, outcome: Outcome, now_s: float) -> None:
        """The request has left the machine.

        Raises:
            KeyError: the assignment was settled before.
        """
        breaker, permit = self._permits.pop(assignment.number)
        breaker.record(permit, outcome, now_s)
        self._loads.end(assignment.machine.id, assignment.tokens)

    def load_tokens(self, machine_id: MachineId) -> int:
        """Tokens that the machine holds, as far as this facade knows."""
        return self._loads.tokens(machine_id)

    def own_tokens(self, machine_id: MachineId) -> int:
        """Tokens of this facade's own requests there."""
        return self._loads.own_tokens(machine_id)

    def circuit(self, machine_id: MachineId, now_s: float) -> BreakerState | None:
        """The state of a machine's circuit; ``None`` if it is offline."""
        breaker = self._breakers.get(machine_id)
        return breaker.state(now_s) if breaker else None

    @property
    def in_flight(self) -> int:
        """Assignments that are not settled."""
        return len(self._permits)

    @property
    def remembered_hashes(self) -> int:
        """Over all models."""
        return sum(len(index) for index in self._affinity.values())

    def _fit(self, request: Request, machine_id: MachineId, now_s: float) -> bool:
        """Whether a machine that serves the model can be chosen."""
        return (
            (request.allowed is None or machine_id in request.allowed)
            and machine_id not in request.excluded
            and self._breakers[machine_id].available(now_s)
        )

    def _narrowed(self, request: Request, serving: Sequence[MachineId]) -> Sequence[MachineId]:
        """What to choose from: those of the key's machines that serve the model, where it has few, otherwise all."""
        if request.allowed is None or len(request.allowed) > _FEW:
            return serving
        # Sorted, since the order of a set of strings differs from process to process.
        return [one for one in sorted(request.allowed) if one in serving]

    def _by_affinity(
        self, request: Request, machines: Sequence[MachineId], now_s: float
    ) -> tuple[MachineId | None, int]:
        """The least busy of those with the longest match, leaving out those that are too busy."""
        index = self._affinity.get(request.model)
        if index is None or not request.prefix.hashes:
            return None, 0
        mean = self._mean(request, machines)
        least_bytes = self._settings.min_match * request.prefix.total_bytes
        seen: tuple[MachineId, ...] = ()
        for depth, holders in index.matches(request.prefix):
            if covered_bytes(depth) < least_bytes:
                break
            # Those of a deeper hash were looked at.
            fresh = [one for one in holders if one not in seen]
            one = self._least_busy(request, fresh, machines, mean, now_s)
            if one is not None:
                return one, covered_bytes(depth)
            seen += tuple(fresh)
        return None, 0

    def _least_busy(
        self, request: Request, holders: Sequence[MachineId], machines: Sequence[MachineId], mean: float, now_s: float
    ) -> MachineId | None:
        """Of ``holders``, one that can be chosen and is not too busy. The cheap questions come first."""
        found, least = None, math.inf
        for one in holders:
            if one not in machines:
                continue
            per_slot = self._loads.per_slot(request.model, one)
            if per_slot >= least or self._busy(request.model, one, per_slot, mean):
                continue
            if self._fit(request, one, now_s):
                found, least = one, per_slot
        return found

    def _mean(self, request: Request, machines: Sequence[MachineId]) -> float:
        """Tokens per slot of the machines that there are to choose from."""
        if request.allowed is None or len(request.allowed) > _FEW:
            return self._loads.mean_per_slot(request.model)
        tokens = sum(self._loads.tokens(one) for one in machines)
        return tokens / sum(self._loads.slots(request.model, one) for one in machines)

    def _busy(self, model: str, machine_id: MachineId, per_slot: float, mean: float) -> bool:
        """Whether the machine, with ``per_slot`` tokens per slot, is too busy to be chosen for what it has cached."""
        if per_slot <= self._settings.busy_ratio * mean:
            return False
        return (per_slot - mean) * self._loads.slots(model, machine_id) > self._settings.busy_margin_tokens

    def _by_load(self, request: Request, machines: Sequence[MachineId], now_s: float) -> MachineId | None:
        """The less busy one of two random ones."""
        two = self._two(request, machines, now_s)
        return min(two, key=lambda one: self._loads.per_slot(request.model, one), default=None)

    def _two(self, request: Request, machines: Sequence[MachineId], now_s: float) -> list[MachineId]:
        """Two random machines that can be chosen, or as many as there are."""
        found: list[MachineId] = []
        for _ in range(_DRAWS if len(machines) > 2 else 0):
            one = machines[int(self._draw.random() * len(machines))]
            if one not in found and self._fit(request, one, now_s):
                found.append(one)
                if len(found) == 2:
                    return found
        fit = [one for one in machines if self._fit(request, one, now_s)]
        return self._draw.sample(fit, min(2, len(fit)))

    def _assign(self, request: Request, machine_id: MachineId, matched_bytes: int, now_s: float) -> Assignment:
        machine = self._directory.get(machine_id)
        if machine is None:
            raise AssertionError("a machine that serves a model is online")
        if request.prefix.hashes:
            index = self._affinity.get(request.model)
            if index is None:
                index = AffinityIndex(self._settings.max_hashes, self._settings.max_machines_per_hash)
                self._affinity[request.model] = index
            index.record(request.prefix, machine_id)
        breaker = self._breakers[machine_id]
        self._number += 1
        self._permits[self._number] = breaker, breaker.begin(now_s)
        self._loads.begin(machine_id, request.tokens)
        return Assignment(self._number, machine, request.tokens, matched_bytes)

    def _refusal(self, request: Request, machines: Sequence[MachineId], now_s: float) -> Refusal:
        if not self._directory.knows(request.model):
            return Refusal.NO_SUCH_MODEL
        allowed = request.allowed
        if allowed is not None and not any(self._directory.has(one, request.model) for one in allowed):
            return Refusal.NONE_ALLOWED
        if any(self._breakers[one].available(now_s) for one in machines if allowed is None or one in allowed):
            return Refusal.ALL_EXCLUDED
        return Refusal.NONE_HEALTHY

    def _take(self, change: Change) -> None:
        if not isinstance(change, MachineChange):
            return
        if change.after is None:
            del self._breakers[change.machine_id]
        elif change.before is None:
            self._breakers[change.machine_id] = Breaker(self._settings.breaker)
        for mantle in change.before.serving if change.before else ():
            if not self._directory.serving(mantle.model):
                self._affinity.pop(mantle.model, None)
