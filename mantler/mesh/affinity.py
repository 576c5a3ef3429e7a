"""Which machines lately got requests that begin alike, for one model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from mantler.mesh.machine import MachineId
from mantler.mesh.prefix import Prefix


class AffinityIndex:
    """The most recently used hashes, each with the machines that got it, the latest first.

    It guesses what a machine still has in its cache, and can be wrong: a guess that fails costs the computation that
    it hoped to save. A machine that is gone is not looked for; it falls out as others come.

    Args:
        max_hashes: how many are remembered; some 170 bytes each, where one machine has it.
        max_machines: how many are remembered for one hash.
    """

    def __init__(self, max_hashes: int, max_machines: int) -> None:
        self._max_hashes = max_hashes
        self._max_machines = max_machines
        self._machines: OrderedDict[bytes, tuple[MachineId, ...]] = OrderedDict()

    def __len__(self) -> int:
        """Hashes that are remembered."""
        return len(self._machines)

    def matches(self, prefix: Prefix) -> Iterator[tuple[int, tuple[MachineId, ...]]]:
        """Depths of the chain that are known, the deepest first, with their machines. Costs O(depth of the match).

        Depths that say nothing new, because a deeper one has the same machines, are left out.
        """
        found: list[tuple[MachineId, ...]] = []
        for key in prefix.hashes:
            machines = self._machines.get(key)
            # A shallow hash is always used later than a deep one of the same chain, and so forgotten later.
            if machines is None:
                break
            found.append(machines)
        deeper: tuple[MachineId, ...] | None = None
        for depth in range(len(found), 0, -1):
            machines = found[depth - 1]
            if machines != deeper:
                yield depth, machines
            deeper = machines

    def record(self, prefix: Prefix, machine_id: MachineId) -> None:
        """Remembers that the machine gets this request."""
        alone: tuple[MachineId, ...] = (machine_id,)
        before = after = alone
        # From the deepest to the shallowest: see `matches`.
        for key in reversed(prefix.hashes):
            machines = self._machines.get(key)
            if machines is None:
                self._machines[key] = alone
                continue
            if machines is not before:
                before = machines
                after = machines if machines[0] == machine_id else self._with_first(machine_id, machines)
            if after is not machines:
                self._machines[key] = after
            self._machines.move_to_end(key)
        while len(self._machines) > self._max_hashes:
            self._machines.popitem(last=False)

    def _with_first(self, machine_id: MachineId, machines: tuple[MachineId, ...]) -> tuple[MachineId, ...]:
        others = (other for other in machines if other != machine_id)
        return (machine_id, *others)[: self._max_machines]
