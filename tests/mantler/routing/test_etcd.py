"""Machines in a real etcd: they come, change, die and leave, and etcd itself goes away and comes back."""

from __future__ import annotations

import asyncio

import pytest

from mantler import messages as m
from mantler import wire
from mantler.etcd import Etcd
from mantler.mesh.directory import MachineChange
from mantler.mesh.machine import ModelLoad
from mantler.routing.client import EXPIRE_EVERY_S
from mantler.routing.etcd import LOOK_EVERY_S
from mantler.v1 import machine_pb2
from runtime_server.mesh import announce
from tests.fake_runtime import FakeRuntime
from tests.mantler.routing.etcd_mesh import MODEL, PREFIX, Mesh, ask, cabled, delete, stands, until, write


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


async def test_a_facade_whose_endpoint_hangs_follows_another_one(
    mesh: Mesh, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mantler.etcd.QUIET_S", 0.5)
    async with cabled(mesh.server.url) as (url, cable), cabled(mesh.server.url) as (other_url, other):
        view, _ = await mesh.facade(url, other_url)
        machine, _ = await mesh.machine(runtime)
        await until(lambda: len(view.directory.serving(MODEL)) == 1)
        cable.cut()
        machine.drain()
        await until(lambda: not view.directory.serving(MODEL))
        cable.mend()
        other.cut()
        async with FakeRuntime() as late:
            await mesh.machine(late)
            await until(lambda: len(view.directory) == 2)


@pytest.mark.parametrize(
    "address", ["", ":50051", "nonsense", "10.0.0.7:50051", "127.0.0.1:0", "0.0.0.0:50051", "unix:50051"]
)
async def test_an_address_that_cannot_be_dialled_costs_its_machine(
    mesh: Mesh, runtime: FakeRuntime, caplog: pytest.LogCaptureFixture, address: str
) -> None:
    view, client = await mesh.facade()
    bad = wire.machine_to_proto(m.MachineInfo("bad", 1, 1, address, ()))
    async with Etcd([mesh.server.url]) as etcd:
        for _ in range(2):
            await write(etcd, "machines/bad", bad.SerializeToString())
        await mesh.machine(runtime)
        await until(lambda: len(view.directory) == 1)
        assert await ask(client) == "one two"
        assert caplog.text.count(f"{PREFIX}/machines/bad in etcd is left out") == 1
        bad.address = runtime.address
        await write(etcd, "machines/bad", bad.SerializeToString())
        await until(lambda: len(view.directory) == 2)


async def test_a_key_that_becomes_nonsense_or_another_name_costs_its_machine(mesh: Mesh, runtime: FakeRuntime) -> None:
    view, _ = await mesh.facade()
    good = wire.machine_to_proto(m.MachineInfo("gpu1", 1, 1, runtime.address, ())).SerializeToString()
    async with Etcd([mesh.server.url]) as etcd:
        for name in ("gpu1", "gpu2"):
            await write(etcd, f"machines/{name}", good.replace(b"gpu1", name.encode()))
        await until(lambda: len(view.directory) == 2)
        await write(etcd, "machines/gpu1", b"\xff")
        await until(lambda: len(view.directory) == 1)
        await write(etcd, "machines/gpu2", good)
        await until(lambda: len(view.directory) == 0)


async def test_an_idle_machine_notices_that_a_later_one_has_its_name(
    mesh: Mesh, runtime: FakeRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    view, _ = await mesh.facade()
    await mesh.machine(runtime, "gpu1", epoch=1)
    await until(lambda: len(view.directory) == 1)
    async with FakeRuntime() as later:
        await mesh.machine(later, "gpu1", epoch=2)
        await until(lambda: "another runtime that started later has announced itself as gpu1" in caplog.text)
        await until(lambda: [seen.address for seen in view.machines()] == [later.address])


async def test_the_earlier_of_two_is_used_once_the_later_has_gone(
    mesh: Mesh, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announce, "REFUSED_RETRY_S", 0.1)
    view, client = await mesh.facade()
    async with FakeRuntime() as later:
        _, announcing = await mesh.machine(later, "gpu1", epoch=2)
        await until(lambda: len(view.directory) == 1)
        await mesh.machine(runtime, "gpu1", epoch=1)
        await announcing.leave()
        await until(lambda: [seen.address for seen in view.machines() if seen.online] == [runtime.address])
    assert await ask(client) == "one two"


@pytest.mark.parametrize("kind", ["machines", "loads"])
async def test_a_key_that_somebody_deletes_is_written_again(mesh: Mesh, runtime: FakeRuntime, kind: str) -> None:
    view, client = await mesh.facade()
    await mesh.machine(runtime, "gpu1")
    await until(lambda: len(view.directory) == 1)
    async with Etcd([mesh.server.url]) as etcd:
        await stands(etcd, "loads/gpu1", bool)
        await delete(etcd, f"{kind}/gpu1")
        await stands(etcd, f"{kind}/gpu1", bool)
    await until(lambda: len(view.directory) == 1)
    assert await ask(client) == "one two"


async def test_a_load_is_written_once_it_has_changed_noticeably(
    mesh: Mesh, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announce, "INTERVAL_S", 0.02)
    runtime.loads = (ModelLoad(MODEL, 10, 0, 10_000),)
    machine, _ = await mesh.machine(runtime, "gpu1")

    async with Etcd([mesh.server.url]) as etcd:
        await stands(etcd, "loads/gpu1", lambda value: _held_tokens(value) == 10_000)
        before = await etcd.range(PREFIX)
        for change in range(20):
            runtime.loads = (ModelLoad(MODEL, 10, 0, 10_000 + 50 * change),)
            wanted = machine.asked + 2
            await until(lambda wanted=wanted: machine.asked >= wanted)  # type: ignore[misc]
        assert await etcd.range(PREFIX) == before
        runtime.loads = (ModelLoad(MODEL, 12, 0, 12_000),)
        await stands(etcd, "loads/gpu1", lambda value: _held_tokens(value) == 12_000)
        monkeypatch.setattr(announce, "SMALL_CHANGE_S", 0.1)
        runtime.loads = (ModelLoad(MODEL, 12, 0, 12_001),)
        await stands(etcd, "loads/gpu1", lambda value: _held_tokens(value) == 12_001)


@pytest.mark.parametrize("who", ["facade", "machine"])
async def test_retries_are_spread(mesh: Mesh, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch, who: str) -> None:
    mesh.server.stop()
    waits: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0.01)

    monkeypatch.setattr("mantler.routing.etcd.asyncio.sleep", noted)
    if who == "facade":
        await mesh.facade()
    else:
        await mesh.machine(runtime)
    async with asyncio.timeout(15):
        while len({wait for wait in waits if 0.25 <= wait <= 0.75} - {LOOK_EVERY_S, EXPIRE_EVERY_S}) < 4:
            await sleep(0.02)


def _held_tokens(value: bytes | None) -> int:
    return sum(model.held_tokens for model in machine_pb2.MachineLoad.FromString(value or b"").models)
