"""Keeps this machine in etcd, for as long as it runs."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import replace

from google.protobuf.message import DecodeError

from mantler import wire
from mantler.etcd import Etcd
from mantler.etcd_gateway import EtcdError
from mantler.mesh.load import noticeable
from mantler.mesh.machine import LoadReport
from mantler.messages import MachineInfo
from mantler.v1 import machine_pb2
from runtime_server.machine import ThisMachine

TTL_S = 2
"""etcd's shortest with its usual settings. A machine that dies is gone after this and etcd's own half second."""
INTERVAL_S = 0.6
RETRY_S = 0.5
REFUSED_RETRY_S = 5.0
LEAVE_S = 1.0
SMALL_CHANGE_S = 5.0
"""How long a load may stand in etcd that is nearly the machine's; see :func:`mantler.mesh.load.noticeable`."""

logger = logging.getLogger(__name__)


class Announcing:
    """Puts the machine's description and load below ``prefix``, under one lease.

    Args:
        etcd: is closed with this.
        address: where facades dial this machine.
    """

    def __init__(self, etcd: Etcd, prefix: str, machine: ThisMachine, address: str) -> None:
        self._etcd = etcd
        self._machine = machine
        self._address = address
        self._machine_key = f"{prefix}/machines/{machine.id}"
        self._load_key = f"{prefix}/loads/{machine.id}"
        self._lease = ""
        self._said: MachineInfo | None = None
        self._reported: LoadReport | None = None
        """What stands in etcd under the lease, as far as is known."""
        self._reported_s = 0.0
        self._trouble = "it has not begun"
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins, in the background."""
        self._task = asyncio.create_task(self._run(), name="announce")

    async def leave(self) -> None:
        """Takes the machine out, so that no new request comes."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self._end_lease()

    async def close(self) -> None:
        """Ends the connection."""
        await self.leave()
        await self._etcd.__aexit__(None, None, None)

    async def _run(self) -> None:
        while True:
            wait_s = RETRY_S
            try:
                await self._stay()
            except EtcdError as error:
                self._complain(str(error))
            except _TakenError:
                self._complain(f"another runtime that started later has announced itself as {self._machine.id}")
                await self._end_lease()
                wait_s = REFUSED_RETRY_S
            # Machines that lost etcd together should not come back together.
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.5))  # noqa: S311 - it spreads retries

    async def _stay(self) -> None:
        """One lease, until it is lost."""
        self._said, self._reported = None, None
        self._lease = await self._etcd.grant(TTL_S)
        renew_at_s = time.monotonic() + INTERVAL_S
        while True:
            await self._write()
            if self._trouble:
                self._trouble = ""
                logger.info("announced in etcd")
            if await self._news_before(renew_at_s):
                continue
            renew_at_s = time.monotonic() + INTERVAL_S
            if not await self._etcd.keep_alive(self._lease):
                self._complain("the lease has ended")
                return
            await self._verify()

    async def _news_before(self, end_s: float) -> bool:
        """Waits for news of the machine, but not beyond ``end_s``. Returns whether there are any."""
        try:
            async with asyncio.timeout(max(0.0, end_s - time.monotonic())):
                await self._machine.news()
        except TimeoutError:
            return False
        return True

    async def _write(self) -> None:
        """Brings what stands in etcd in line with what the machine is, as far as it is worth a write."""
        info = replace(await self._machine.info(), address=self._address)
        if info != self._said:
            await self._put(info)
            self._said = info
        report = self._machine.load()
        if self._reported is not None and not self._worth(report, self._reported):
            return
        value = wire.load_to_proto(report).SerializeToString()
        if await self._etcd.put_beside(self._machine_key, self._load_key, value, self._lease):
            self._reported, self._reported_s = report, time.monotonic()
        else:
            self._said = None  # the machine's key is gone or another one's, as the next look finds out

    def _worth(self, report: LoadReport, before: LoadReport) -> bool:
        if noticeable(before, report):
            return True
        return report.models != before.models and time.monotonic() > self._reported_s + SMALL_CHANGE_S

    async def _verify(self) -> None:
        """Whatever somebody else has deleted or written over counts as not written."""
        keys = await self._etcd.keys(self._lease)
        if self._machine_key not in keys:
            self._said = None
        if self._load_key not in keys:
            self._reported = None

    async def _put(self, info: MachineInfo) -> None:
        """Writes the machine, unless a later life of it stands there."""
        while True:
            before = await self._etcd.get(self._machine_key)
            if before is not None and _epoch(before.value or b"") > info.epoch:
                raise _TakenError
            value = wire.machine_to_proto(info).SerializeToString()
            if await self._etcd.replace(self._machine_key, value, self._lease, before):
                return

    async def _end_lease(self) -> None:
        """Takes out what was written, unless etcd does not answer: then it goes by itself."""
        if not self._lease:
            return
        try:
            async with asyncio.timeout(LEAVE_S):
                await self._etcd.revoke(self._lease)
        except (EtcdError, TimeoutError):
            logger.debug("etcd did not hear the farewell; the lease ends by itself")

    def _complain(self, trouble: str) -> None:
        """Logs the same trouble once."""
        if self._trouble != trouble:
            self._trouble = trouble
            logger.warning("not in etcd: %s", trouble)


def _epoch(value: bytes) -> int:
    """Of the machine that ``value`` describes; 0 where it describes none, so that it is written over."""
    try:
        return int(machine_pb2.Machine.FromString(value).epoch)
    except DecodeError:
        return 0


class _TakenError(Exception):
    """A later life of this machine has its key."""
