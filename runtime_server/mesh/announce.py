"""Keeps this machine in etcd, for as long as it runs."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from google.protobuf.message import DecodeError

from mantler import wire
from mantler.etcd import Etcd, EtcdError
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
        self._trouble = "it has not begun"
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins, in the background."""
        self._task = asyncio.create_task(self._run(), name="announce")

    async def leave(self) -> None:
        """Takes the machine out, so that no new request comes."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        try:
            async with asyncio.timeout(LEAVE_S):
                if self._lease:
                    await self._etcd.revoke(self._lease)
        except (EtcdError, TimeoutError):
            logger.debug("etcd did not hear the farewell; the lease ends by itself")

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
                self._report(str(error))
            except _TakenError:
                self._report(f"another runtime that started later has announced itself as {self._machine.id}")
                wait_s = REFUSED_RETRY_S
            await asyncio.sleep(wait_s)

    async def _stay(self) -> None:
        """One lease, until it is lost."""
        self._lease = await self._etcd.grant(TTL_S)
        said: MachineInfo | None = None
        reported: LoadReport | None = None
        while said is None or await self._etcd.keep_alive(self._lease):
            info = replace(await self._machine.info(), address=self._address)
            if info != said:
                await self._put(info)
                said = info
            report = self._machine.load()
            if reported is None or report.models != reported.models:
                await self._etcd.put(self._load_key, wire.load_to_proto(report).SerializeToString(), self._lease)
                reported = report
            if self._trouble:
                self._trouble = ""
                logger.info("announced in etcd")
            try:
                async with asyncio.timeout(INTERVAL_S):
                    await self._machine.news()
            except TimeoutError:
                continue
        self._report("the lease has ended")

    async def _put(self, info: MachineInfo) -> None:
        """Writes the machine, unless a later life of it stands there."""
        while True:
            before = await self._etcd.get(self._machine_key)
            if before is not None and _epoch(before.value or b"") > info.epoch:
                raise _TakenError
            value = wire.machine_to_proto(info).SerializeToString()
            if await self._etcd.replace(self._machine_key, value, self._lease, before):
                return

    def _report(self, trouble: str) -> None:
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
