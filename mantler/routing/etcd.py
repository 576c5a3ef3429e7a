"""A membership of machines that announce themselves in etcd, for meshes with several facades.

What stands in etcd is true: a machine is there from its key's first appearance to its deletion, which etcd does itself
when the machine's lease ends. While etcd is away nothing is known to have changed, and what was there goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from google.protobuf.message import DecodeError

from mantler import wire
from mantler.errors import MantlerError
from mantler.etcd import CompactedError, Etcd, EtcdError, KeyValue
from mantler.mesh.machine import MachineId
from mantler.messages import MachineInfo
from mantler.routing.view import View
from mantler.v1 import machine_pb2

MACHINES = "/machines/"
LOADS = "/loads/"
HOLD_S = 2.0
"""How long a machine counts as online after each look at what is known; each look comes long before that."""
LOOK_EVERY_S = 0.5
SILENCE_S = 1.5
"""An etcd that has not answered for so long may have ended leases that were renewed in time."""
RETRY_S = 0.5
MISSING_S = 3.0
"""How long after etcd is back a machine may be missing there before it is gone: it may have to come again."""

_log = logging.getLogger("mantler.routing")


class EtcdMembership:
    """Follows the keys below ``prefix``.

    Args:
        etcd: is closed by the caller.
    """

    def __init__(self, etcd: Etcd, prefix: str, view: View) -> None:
        self._etcd = etcd
        self._prefix = prefix
        self._view = view
        self._here: dict[str, MachineInfo] = {}
        """By key."""
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
                if not revision:
                    revision = await self._read()
                async with contextlib.aclosing(self._etcd.watch(self._prefix + "/", revision + 1)) as changes:
                    async for change in changes:
                        for found in change:
                            self._take(found)
                            revision = max(revision, found.mod_revision)
            except CompactedError:
                revision = 0
            except EtcdError as error:
                if self._trouble != str(error):
                    self._trouble = str(error)
                    _log.warning("etcd is away, and the machines that are known stay so: %s", error)
                revision = 0
                await asyncio.sleep(RETRY_S)

    async def _read(self) -> int:
        """Takes in everything. Returns its revision."""
        revision, found = await self._etcd.range(self._prefix + "/")
        for each in found:
            self._take(each)
        there = {each.key for each in found}
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
                self._view.heard(MachineId(machine.id), now_s=now_s, lease_until_s=now_s + HOLD_S)
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
        now_s = time.monotonic()
        try:
            if found.key.startswith(self._prefix + MACHINES):
                if found.value is None:
                    self._doubt_after_silence()
                    if now_s < self._doubt_until_s:
                        self._missing.setdefault(found.key, now_s)
                    else:
                        self._gone(found.key)
                    return
                machine = wire.machine_from_proto(machine_pb2.Machine.FromString(found.value))
                self._missing.pop(found.key, None)
                self._here[found.key] = machine
                self._view.registered(machine, machine.address, now_s=now_s, lease_until_s=now_s + HOLD_S)
            elif found.key.startswith(self._prefix + LOADS) and found.value is not None:
                name = MachineId(found.key.removeprefix(self._prefix + LOADS))
                report = wire.load_from_proto(name, machine_pb2.MachineLoad.FromString(found.value))
                self._view.reported(report, now_s=now_s, lease_until_s=now_s + HOLD_S)
        except (DecodeError, MantlerError):
            _log.exception("%s in etcd is not a machine's", found.key)

    def _gone(self, key: str) -> None:
        self._missing.pop(key, None)
        machine = self._here.pop(key, None)
        if machine is not None:
            self._view.left(machine, now_s=time.monotonic())
