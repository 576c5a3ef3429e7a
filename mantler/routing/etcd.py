"""A membership of machines that announce themselves in etcd, for meshes with several facades.

What stands in etcd is true: a machine is there from its key's first appearance to its deletion, which etcd does itself
when the machine's lease ends. While etcd is away nothing is known to have changed, and what was there goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time

from google.protobuf.message import DecodeError

from mantler import wire
from mantler.config import split_address
from mantler.errors import MantlerError
from mantler.etcd import CompactedError, Etcd, KeyValue
from mantler.etcd_gateway import EtcdError
from mantler.mesh.machine import LoadReport, MachineId
from mantler.messages import MachineInfo
from mantler.routing.view import View
from mantler.security.errors import SecurityError
from mantler.security.loopback import is_socket, is_wildcard
from mantler.security.transport import Security
from mantler.v1 import machine_pb2

MACHINES = "/machines/"
LOADS = "/loads/"
HOLD_S = 2.0
"""How long a machine counts as online after each look at what is known; each look comes long before that."""
LOOK_EVERY_S = 0.5
SILENCE_S = 1.5
"""An etcd that has not answered for so long may have ended leases that were renewed in time."""
RETRY_S = (0.25, 0.75)
"""A random time, so that facades do not come back together."""
MISSING_S = 3.0
"""How long after etcd is back a machine may be missing there before it is gone: it may have to come again."""

_log = logging.getLogger("mantler.routing")


class EtcdMembership:
    """Follows the keys below ``prefix``. One that cannot be a machine costs that machine, and a line of the log.

    Args:
        etcd: is closed by the caller.
        security: machines that it does not let this process dial are not taken in.
    """

    def __init__(self, etcd: Etcd, prefix: str, view: View, security: Security) -> None:
        self._etcd = etcd
        self._prefix = prefix
        self._view = view
        self._security = security
        self._here: dict[str, MachineInfo] = {}
        """By key."""
        self._refused: set[str] = set()
        """Keys in etcd that were complained of."""
        self._missing: dict[str, float] = {}
        """Those that are not there any more after a silence of etcd, and since when."""
        self._heard_s = time.monotonic()
        """When etcd last answered."""
        self._doubt_until_s = 0.0
        self._trouble = ""
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Reads what is there, where etcd answers, and follows it in the background."""
        revision = 0
        with contextlib.suppress(EtcdError):
            revision = await self._read()
        self._tasks = [asyncio.create_task(self._follow(revision)), asyncio.create_task(self._hold())]
        self._tasks.append(asyncio.create_task(self._listen()))

    async def refresh(self) -> None:
        """Nothing: a watch tells what changes when it does."""

    async def close(self) -> None:
        """Stops following."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _follow(self, revision: int) -> None:
        while True:
            try:
                revision = revision or await self._read()
                async with contextlib.aclosing(self._etcd.watch(self._prefix + "/", revision + 1)) as changes:
                    async for change in changes:
                        for found in change:
                            self._take(found)
            except CompactedError:
                revision = 0
            except EtcdError as error:
                if self._trouble != str(error):
                    self._trouble = str(error)
                    _log.warning("etcd is away, and the machines that are known stay so: %s", error)
                revision = 0
                await asyncio.sleep(random.uniform(*RETRY_S))  # noqa: S311 - it spreads retries

    async def _read(self) -> int:
        """Takes in everything. Returns its revision."""
        revision, found = await self._etcd.range(self._prefix + "/")
        # How busy a machine is counts once the machine is known.
        for each in sorted(found, key=lambda each: each.key.startswith(self._prefix + LOADS)):
            self._take(each)
        there = {each.key for each in found}
        self._refused &= there
        for key in self._here.keys() - there:
            self._missing.setdefault(key, time.monotonic())
        if self._trouble:
            self._trouble = ""
            _log.info("etcd is back")
        return revision

    async def _hold(self) -> None:
        """Keeps online what is there, whatever etcd does meanwhile."""
        while True:
            now_s = time.monotonic()
            for key, since_s in list(self._missing.items()):
                if now_s > since_s + MISSING_S:
                    self._gone(key)
            for machine in self._here.values():
                self._view.renewed(machine, machine.address, now_s=now_s, lease_until_s=now_s + HOLD_S)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _listen(self) -> None:
        """Notices silences of etcd, which a watch does not tell from there being no news."""
        while True:
            with contextlib.suppress(EtcdError):
                await self._etcd.get(self._prefix)
                self._doubt_after_silence()
                self._heard_s = time.monotonic()
            await asyncio.sleep(LOOK_EVERY_S)

    def _doubt_after_silence(self) -> None:
        # An etcd that stood still ends all leases the moment it goes on, whose machines may be well.
        now_s = time.monotonic()
        if now_s > self._heard_s + SILENCE_S:
            self._doubt_until_s = now_s + MISSING_S

    def _take(self, found: KeyValue) -> None:
        if found.value is None:
            self._deleted(found.key)
            return
        now_s = time.monotonic()
        try:
            if found.key.startswith(self._prefix + MACHINES):
                machine = self._machine(found.key.removeprefix(self._prefix + MACHINES), found.value)
                self._view.registered(machine, machine.address, now_s=now_s, lease_until_s=now_s + HOLD_S)
                self._here[found.key] = machine
                self._missing.pop(found.key, None)
            elif found.key.startswith(self._prefix + LOADS):
                report = _load(found.key.removeprefix(self._prefix + LOADS), found.value)
                self._view.reported(report, now_s=now_s, lease_until_s=now_s + HOLD_S)
            self._refused.discard(found.key)
        except (DecodeError, MantlerError, SecurityError, ValueError) as error:
            self._gone(found.key)
            if found.key not in self._refused:
                self._refused.add(found.key)
                _log.warning("%s in etcd is left out: %s", found.key, error)

    def _machine(self, name: str, value: bytes) -> MachineInfo:
        """Raises one of several exceptions where it cannot be dialled from here, or is no machine's."""
        machine = wire.machine_from_proto(machine_pb2.Machine.FromString(value))
        if machine.id != name:
            raise ValueError(f"it is the machine {machine.id!r}")
        host, port = split_address(machine.address)
        # What gRPC takes for a socket of this host would get past the check below.
        if is_socket(machine.address) or is_wildcard(host) or not port:
            raise ValueError(f"{machine.address} is no address of a machine")
        self._security.check_dialing([machine.address])
        return machine

    def _deleted(self, key: str) -> None:
        self._refused.discard(key)
        self._doubt_after_silence()
        now_s = time.monotonic()
        if now_s < self._doubt_until_s and key in self._here:
            self._missing.setdefault(key, now_s)
        else:
            self._gone(key)

    def _gone(self, key: str) -> None:
        self._missing.pop(key, None)
        machine = self._here.pop(key, None)
        if machine is not None:
            self._view.left(machine, now_s=time.monotonic())


def _load(name: str, value: bytes) -> LoadReport:
    return wire.load_from_proto(MachineId(name), machine_pb2.MachineLoad.FromString(value))
