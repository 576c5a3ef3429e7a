"""How busy machines are, in tokens: what this facade has sent them, and what others have.

What this facade sends counts from the moment of the choice, since a report comes later than the next hundred requests.
What others send is what a machine reports beyond what this facade has there when the report comes; requests that were
on their way meanwhile make it a little too small, and the next report corrects it.

A machine's models share its processors, so a machine has one load. How much that is depends on the mantle: loads are
compared per slot.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mantler.mesh.directory import Change, Directory, MachineChange
from mantler.mesh.machine import LoadReport, MachineId, ModelLoad

BYTES_PER_TOKEN = 4
"""Of English text, roughly, with today's vocabularies. A facade has no tokenizer."""
USUAL_OUTPUT_TOKENS = 256
"""What an answer is taken to have where the request allows more."""
NOTICEABLE_TOKENS = USUAL_OUTPUT_TOKENS
"""A load that has changed by no more than this, which is less than one usual request, or ..."""
NOTICEABLE_SHARE = 0.1
"""... by no more than this share of what it was is nearly the same: half of what
the bound on busy machines leaves free."""


def estimate_tokens(prompt_bytes: int, max_tokens: int | None) -> int:
    """Tokens that a request is going to hold, prompt and output together, at least 1."""
    output = USUAL_OUTPUT_TOKENS if max_tokens is None else min(max_tokens, USUAL_OUTPUT_TOKENS)
    return max(1, prompt_bytes // BYTES_PER_TOKEN + output)


def noticeable(before: LoadReport, now: LoadReport) -> bool:
    """Whether ``now`` says something that choices, or whoever waits for a machine to be idle, should know at once."""
    earlier = {load.model: load for load in before.models}
    later = {load.model: load for load in now.models}
    return earlier.keys() != later.keys() or any(_differs(earlier[model], load) for model, load in later.items())


def _differs(before: ModelLoad, now: ModelLoad) -> bool:
    if (before.running > 0, before.queued > 0) != (now.running > 0, now.queued > 0):
        return True
    changed = abs(now.running_tokens - before.running_tokens)
    return changed > max(NOTICEABLE_TOKENS, NOTICEABLE_SHARE * before.running_tokens)


@dataclass(slots=True)
class _Pool:
    """The machines that serve one model. The sums save a choice from looking at all of them."""

    slots: dict[MachineId, int] = field(default_factory=dict)
    total_slots: int = 0
    total_tokens: int = 0


class Loads:
    """The loads of the machines in ``directory``. Every operation costs O(models of the machine)."""

    def __init__(self, directory: Directory) -> None:
        self._own: dict[MachineId, int] = {}
        """Only machines with requests in flight."""
        self._others: dict[MachineId, int] = {}
        self._models: dict[MachineId, tuple[str, ...]] = {}
        self._pools: dict[str, _Pool] = {}
        for machine in directory.online():
            self._take(MachineChange(machine.id, None, machine))
        directory.subscribe(self._take)

    def tokens(self, machine_id: MachineId) -> int:
        """Tokens that the machine holds."""
        return self._own.get(machine_id, 0) + self._others.get(machine_id, 0)

    def own_tokens(self, machine_id: MachineId) -> int:
        """Those of them that this facade has sent."""
        return self._own.get(machine_id, 0)

    def slots(self, model: str, machine_id: MachineId) -> int:
        """Of a machine that serves ``model``."""
        return self._pools[model].slots[machine_id]

    def per_slot(self, model: str, machine_id: MachineId) -> float:
        """Tokens per slot of a machine that serves ``model``."""
        return self.tokens(machine_id) / self._pools[model].slots[machine_id]

    def mean_per_slot(self, model: str) -> float:
        """Tokens per slot over all machines that serve ``model``, of which there is at least one."""
        pool = self._pools[model]
        return pool.total_tokens / pool.total_slots

    def begin(self, machine_id: MachineId, tokens: int) -> None:
        """Counts a request that is sent now."""
        self._own[machine_id] = self._own.get(machine_id, 0) + tokens
        self._add_to_pools(machine_id, tokens)

    def end(self, machine_id: MachineId, tokens: int) -> None:
        """Counts the same request no more."""
        left = self._own[machine_id] - tokens
        if left:
            self._own[machine_id] = left
        else:
            del self._own[machine_id]
        self._add_to_pools(machine_id, -tokens)

    def _take(self, change: Change) -> None:
        if isinstance(change, MachineChange):
            self._part(change)
            self._join(change)
        else:
            others = max(0, change.running_tokens - self._own.get(change.machine_id, 0))
            self._add_to_pools(change.machine_id, others - self._others.get(change.machine_id, 0))
            self._others[change.machine_id] = others

    def _part(self, change: MachineChange) -> None:
        tokens = self.tokens(change.machine_id)
        for model in self._models.pop(change.machine_id, ()):
            pool = self._pools[model]
            pool.total_slots -= pool.slots.pop(change.machine_id)
            pool.total_tokens -= tokens
            if not pool.slots:
                del self._pools[model]

    def _join(self, change: MachineChange) -> None:
        if change.after is None:
            self._others.pop(change.machine_id, None)
            return
        tokens = self.tokens(change.machine_id)
        self._models[change.machine_id] = tuple(mantle.model for mantle in change.after.serving)
        for mantle in change.after.serving:
            pool = self._pools.setdefault(mantle.model, _Pool())
            pool.slots[change.machine_id] = mantle.slots
            pool.total_slots += mantle.slots
            pool.total_tokens += tokens

    def _add_to_pools(self, machine_id: MachineId, tokens: int) -> None:
        for model in self._models.get(machine_id, ()):
            self._pools[model].total_tokens += tokens
