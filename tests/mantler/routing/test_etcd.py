"""Machines in a real etcd: they come, change, die and leave, and etcd itself goes away and comes back."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from mantler import messages as m
from mantler.etcd import CompactedError, Etcd
from mantler.etcd_gateway import EtcdError
from mantler.mesh.directory import Directory, MachineChange
from mantler.mesh.machine import LoadReport
from mantler.routing.client import MeshClient, connected
from mantler.routing.etcd import EtcdMembership
from mantler.routing.view import View
from mantler.security.transport import Security
from runtime_server.machine import ThisMachine
from runtime_server.mesh import announce
from runtime_server.mesh.announce import Announcing
from tests.etcd_server import EtcdServer, why_not
from tests.fake_runtime import FakeRuntime

PREFIX = "/test"
MODEL = "smollm2:135m"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EtcdServer]:
    if reason := why_not():
        pytest.skip(reason)
    server = EtcdServer(tmp_path)
    server.start()
    yield server
    server.stop()


class Machine:
    """Says what a fake runtime is, as a runtime's own ``ThisMachine`` does."""

    def __init__(self, runtime: FakeRuntime) -> None:
        self.id = runtime.address
        self.epoch = 1
        self.draining = False
        self._runtime = runtime
        self._news = asyncio.Event()

    async def info(self) -> m.MachineInfo:
        models = tuple(sorted(self._runtime.models.values(), key=lambda known: known.id))
        return m.MachineInfo(self.id, self.epoch, 1 + self.draining, self._runtime.address, models, self.draining)

    def load(self) -> LoadReport:
        return self._runtime.load()

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

    async def facade(self) -> tuple[View, MeshClient]:
        etcd = await self.stack.enter_async_context(Etcd([self.server.url]))
        view = View(Directory())
        membership = EtcdMembership(etcd, PREFIX, view, Security())
        client = await self.stack.enter_async_context(
            connected([], resume_within_s=1.0, view=view, others=[membership])
        )
        return view, client

    async def machine(self, runtime: FakeRuntime, name: str = "", epoch: int = 1) -> tuple[Machine, Announcing]:
        machine = Machine(runtime)
        machine.id, machine.epoch = name or machine.id, epoch
        announcing = Announcing(Etcd([self.server.url]), PREFIX, cast(ThisMachine, machine), runtime.address)
        self.stack.push_async_callback(announcing.close)
        announcing.start()
        return machine, announcing


@pytest.fixture
async def mesh(server: EtcdServer) -> AsyncIterator[Mesh]:
    async with AsyncExitStack() as stack:
        yield Mesh(server, stack)


@pytest.fixture
async def runtime() -> AsyncIterator[FakeRuntime]:
    async with FakeRuntime() as runtime:
        yield runtime


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        for _ in itertools.count():
            if holds():
                return
            await asyncio.sleep(0.02)


async def write(etcd: Etcd, name: str, value: bytes) -> None:
    """Whatever stands there, as an operator may."""
    key = f"{PREFIX}/{name}"
    assert await etcd.replace(key, value, await etcd.grant(60), await etcd.get(key))


async def ask(client: MeshClient) -> str:
    prompt = m.ChatPrompt((m.ChatMessage(m.Role.USER, "one two"),))
    events = client.generate(m.GenerateRequest("r", MODEL, prompt), 10.0)
    return "".join([event.body.text async for event in events if isinstance(event.body, m.Delta)])


async def test_all_facades_see_a_machine_that_comes_drains_and_leaves(mesh: Mesh, runtime: FakeRuntime) -> None:
    first, client = await mesh.facade()
    machine, announcing = await mesh.machine(runtime)
    await until(lambda: len(first.directory) == 1)
    second, other = await mesh.facade()
    assert len(second.directory) == 1, "what is there already is known from the start"
    assert await ask(client) == await ask(other) == "one two"
    machine.drain()
    await until(lambda: not first.directory.serving(MODEL) and not second.directory.serving(MODEL))
    assert len(first.directory) == 1
    await announcing.leave()
    await until(lambda: len(first.directory) == len(second.directory) == 0)


async def test_a_machine_that_dies_is_gone_and_one_that_comes_back_is_used(mesh: Mesh, runtime: FakeRuntime) -> None:
    view, client = await mesh.facade()
    _, announcing = await mesh.machine(runtime)
    await until(lambda: len(view.directory) == 1)
    assert announcing._task is not None
    announcing._task.cancel()  # as a process that is killed: nobody ends the lease
    await until(lambda: len(view.directory) == 0)
    await mesh.machine(runtime, epoch=2)
    await until(lambda: len(view.directory) == 1)
    assert await ask(client) == "one two"


@pytest.mark.parametrize("way", ["stopped", "frozen"])
async def test_machines_go_on_while_etcd_is_away(mesh: Mesh, runtime: FakeRuntime, way: str) -> None:
    view, client = await mesh.facade()
    changes: list[MachineChange] = []
    await mesh.machine(runtime)
    await until(lambda: len(view.directory) == 1)
    view.directory.subscribe(lambda change: changes.append(change) if isinstance(change, MachineChange) else None)
    if way == "stopped":
        mesh.server.stop()
    else:
        mesh.server.freeze()
    async with asyncio.timeout(10):
        for _ in range(8):
            assert await ask(client) == "one two"
            await asyncio.sleep(0.5)
    assert changes == []
    if way == "stopped":
        await asyncio.to_thread(mesh.server.start)
    else:
        mesh.server.thaw()
    async with FakeRuntime() as late:
        await mesh.machine(late)
        await until(lambda: len(view.directory) == 2)
    assert [change for change in changes if change.machine_id == runtime.address] == []


async def test_a_machine_that_went_while_etcd_was_away_is_gone_when_it_is_back(
    mesh: Mesh, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mantler.routing.etcd.MISSING_S", 0.5)
    view, _ = await mesh.facade()
    _, announcing = await mesh.machine(runtime)
    await until(lambda: len(view.directory) == 1)
    mesh.server.stop()
    assert announcing._task is not None
    announcing._task.cancel()
    await asyncio.to_thread(mesh.server.start)
    await until(lambda: len(view.directory) == 0)


async def test_the_later_of_two_with_one_name_stays(
    mesh: Mesh, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(announce, "REFUSED_RETRY_S", 0.1)
    view, _ = await mesh.facade()
    async with FakeRuntime() as later:
        await mesh.machine(later, "gpu1", epoch=2)
        await until(lambda: len(view.directory) == 1)
        await mesh.machine(runtime, "gpu1", epoch=1)
        await until(lambda: "another runtime that started later has announced itself as gpu1" in caplog.text)
        [seen] = view.machines()
        assert seen.address == later.address


async def test_what_is_no_machine_is_written_over(mesh: Mesh, runtime: FakeRuntime) -> None:
    view, _ = await mesh.facade()
    async with Etcd([mesh.server.url]) as etcd:
        await write(etcd, "machines/gpu1", b"\xff")
    await mesh.machine(runtime, "gpu1")
    await until(lambda: len(view.directory) == 1)


async def test_a_revision_that_is_gone_is_said(server: EtcdServer) -> None:
    async with Etcd([server.url]) as etcd:
        lease = await etcd.grant(60)
        for number in range(5):
            assert await etcd.replace("/a", b"%d" % number, lease, await etcd.get("/a"))
        revision, found = await etcd.range("/a")
        assert [each.value for each in found] == [b"4"]
        await etcd._gateway.ask("kv/compaction", {"revision": str(revision)})
        with pytest.raises(CompactedError):
            async for _ in etcd.watch("/a", 2):
                pass


async def test_an_etcd_that_is_not_there_is_said_in_words(server: EtcdServer) -> None:
    async with Etcd(["http://127.0.0.1:1", server.url]) as etcd:
        assert await etcd.get("/nothing") is None, "another endpoint answers"
        assert not await etcd.keep_alive("12345")
    async with Etcd(["http://127.0.0.1:1"]) as etcd:
        with pytest.raises(EtcdError, match=r"http://127\.0\.0\.1:1: Cannot connect"):
            await etcd.grant(2)
