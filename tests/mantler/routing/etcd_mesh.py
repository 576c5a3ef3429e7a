"""Facades and machines that meet in a real etcd."""

from __future__ import annotations

import asyncio
import base64
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import cast

from mantler import messages as m
from mantler.cli.drill.cable import Cable
from mantler.etcd import Etcd
from mantler.mesh.directory import Directory
from mantler.mesh.machine import LoadReport
from mantler.routing.client import MeshClient, connected
from mantler.routing.etcd import EtcdMembership
from mantler.routing.view import View
from mantler.security.transport import Security
from runtime_server.machine import ThisMachine
from runtime_server.mesh.announce import Announcing
from tests.etcd_server import EtcdServer
from tests.fake_runtime import FakeRuntime

PREFIX = "/test"
MODEL = "smollm2:135m"


class Machine:
    """Says what a fake runtime is, as a runtime's own ``ThisMachine`` does."""

    def __init__(self, runtime: FakeRuntime) -> None:
        self.id = runtime.address
        self.epoch = 1
        self.draining = False
        self.asked = 0
        """How often for its load."""
        self._runtime = runtime
        self._news = asyncio.Event()

    async def info(self) -> m.MachineInfo:
        models = tuple(sorted(self._runtime.models.values(), key=lambda known: known.id))
        return m.MachineInfo(self.id, self.epoch, 1 + self.draining, self._runtime.address, models, self.draining)

    def load(self) -> LoadReport:
        self.asked += 1
        return replace(self._runtime.load(), epoch=self.epoch, sequence=self.asked)

    def drain(self) -> None:
        self.draining = True
        self._news.set()

    async def news(self) -> None:
        await self._news.wait()
        self._news.clear()


@dataclass
class Mesh:
    """Facades that follow etcd, and machines that announce themselves there."""

    server: EtcdServer
    stack: AsyncExitStack

    async def facade(self, *urls: str) -> tuple[View, MeshClient]:
        """A new one, which knows etcd at ``urls``."""
        etcd = await self.stack.enter_async_context(Etcd(urls or [self.server.url]))
        view = View(Directory())
        membership = EtcdMembership(etcd, PREFIX, view, Security())
        client = await self.stack.enter_async_context(
            connected([], resume_within_s=1.0, view=view, others=[membership])
        )
        return view, client

    async def machine(self, runtime: FakeRuntime, name: str = "", epoch: int = 1) -> tuple[Machine, Announcing]:
        """A new one, which begins to announce itself."""
        machine = Machine(runtime)
        machine.id, machine.epoch = name or machine.id, epoch
        announcing = Announcing(Etcd([self.server.url]), PREFIX, cast(ThisMachine, machine), runtime.address)
        self.stack.push_async_callback(announcing.close)
        announcing.start()
        return machine, announcing


async def until(holds: Callable[[], bool]) -> None:
    """Waits for it, for as long as a busy host may need."""
    async with asyncio.timeout(15):
        for _ in itertools.count():
            if holds():
                return
            await asyncio.sleep(0.02)


async def write(etcd: Etcd, name: str, value: bytes) -> None:
    """Writes a key below the prefix over whatever stands there, as an operator may."""
    key = f"{PREFIX}/{name}"
    assert await etcd.replace(key, value, await etcd.grant(60), await etcd.get(key))


async def stands(etcd: Etcd, name: str, holds: Callable[[bytes | None], bool]) -> None:
    """Waits until what stands in etcd below the prefix, ``None`` for nothing, is right."""
    async with asyncio.timeout(15):
        for _ in itertools.count():
            found = await etcd.get(f"{PREFIX}/{name}")
            if holds(found.value if found is not None else None):
                return
            await asyncio.sleep(0.02)


async def delete(etcd: Etcd, name: str) -> None:
    """Deletes a key below the prefix."""
    key = base64.b64encode(f"{PREFIX}/{name}".encode()).decode()
    assert (await etcd._gateway.ask("kv/deleterange", {"key": key}))["deleted"] == "1"


@asynccontextmanager
async def cabled(url: str) -> AsyncIterator[tuple[str, Cable]]:
    """Another address of the same server, and what stands between."""
    async with Cable(url.removeprefix("http://")) as cable:
        yield f"http://{cable.address}", cable


async def ask(client: MeshClient) -> str:
    """What the mesh answers: "one two", if all is well."""
    prompt = m.ChatPrompt((m.ChatMessage(m.Role.USER, "one two"),))
    events = client.generate(m.GenerateRequest("r", MODEL, prompt), 10.0)
    return "".join([event.body.text async for event in events if isinstance(event.body, m.Delta)])
