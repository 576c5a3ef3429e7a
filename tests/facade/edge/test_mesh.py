"""Machines join a facade, are dialled or reached through tunnels, and go."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import aiohttp
import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from facade.app import running
from facade.edge import mesh as mesh_service
from facade.edge import tunnels
from mantler.mesh.directory import Directory
from mantler.mesh.machine import LoadReport, MachineId
from mantler.messages import MachineInfo
from mantler.routing import registry
from mantler.routing.view import View
from mantler.security.transport import Security
from mantler.tenancy.tokens import TokenStore
from mantler.v1 import machine_pb2, mesh_pb2, mesh_pb2_grpc, model_pb2
from runtime_server.machine import ThisMachine
from runtime_server.mesh import join
from runtime_server.mesh.join import Joining
from tests.facade.conftest import AUTH, CHAT, chat, make_settings
from tests.fake_runtime import FakeRuntime, Gate


class Machine:
    """Says what a fake runtime is, as a runtime's own ``ThisMachine`` does."""

    def __init__(self, runtime: FakeRuntime) -> None:
        self._runtime = runtime

    async def info(self) -> MachineInfo:
        return self._runtime.info()

    def load(self) -> LoadReport:
        return self._runtime.load()

    async def news(self) -> None:
        await asyncio.Event().wait()


@dataclass
class Facade:
    """A facade whose mesh is joined."""

    url: str
    grpc: str
    http: aiohttp.ClientSession
    tokens: TokenStore
    view: View
    stack: AsyncExitStack

    async def ask(self) -> int:
        """The status of a chat."""
        async with self.http.post(f"{self.url}{CHAT}", json=chat(), headers=AUTH) as response:
            if response.status == 200:
                assert (await response.json())["choices"][0]["message"]["content"] == "one two three"
            return response.status

    async def until(self, status: int) -> None:
        """Asks until the answer has the status."""

        async def asked() -> bool:
            return await self.ask() == status

        await eventually(asked)

    async def until_machines(self, count: int) -> None:
        """Waits until so many machines are in the mesh."""

        async def there() -> bool:
            return len(self.view.directory) == count

        await eventually(there)

    async def joining(self, runtime: FakeRuntime, *, reach: str = "dial", token: str = "") -> Joining:
        """A machine that joins, until the test ends."""
        if not token:
            token, _ = await self.tokens.create("a machine")
        joining = Joining(
            self.grpc,
            cast(ThisMachine, Machine(runtime)),
            address=runtime.address if reach == "dial" else "",
            token=token,
            socket=runtime.socket if reach == "tunnel" else "",
            security=Security(),
        )
        self.stack.push_async_callback(joining.close)
        joining.start()
        return joining


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    """Asks until it holds."""
    async with asyncio.timeout(10):
        for _ in itertools.count():
            if await holds():
                return
            await asyncio.sleep(0.02)


async def logged(caplog: pytest.LogCaptureFixture, words: str) -> None:
    """Waits until somebody has logged the words."""

    async def there() -> bool:
        return words in caplog.text

    await eventually(there)


@pytest.fixture
async def facade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Facade]:
    monkeypatch.setattr(registry, "LEASE_S", 0.5)
    monkeypatch.setattr(mesh_service, "RECHECK_S", 0.1)
    monkeypatch.setattr(registry, "REPORT_S", 0.05)
    monkeypatch.setattr(mesh_service, "REPORT_S", 0.05)
    monkeypatch.setattr(join, "RETRY_S", 0.05)
    settings = make_settings(tmp_path, "127.0.0.1:1", resume_within_s=5.0)
    async with AsyncExitStack() as stack:
        view = View(Directory())
        monkeypatch.setattr("facade.app.View", lambda _: view)
        bound = await stack.enter_async_context(running(settings))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        tokens = await stack.enter_async_context(await TokenStore.open(settings.database_url))
        yield Facade(f"http://{bound.host}:{bound.port}", f"127.0.0.1:{bound.grpc_port}", http, tokens, view, stack)


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[FakeRuntime]:
    async with FakeRuntime(socket=str(tmp_path / "runtime.sock")) as runtime:
        yield runtime


@pytest.mark.parametrize("reach", ["dial", "tunnel"])
async def test_a_machine_joins_serves_and_leaves(facade: Facade, runtime: FakeRuntime, reach: str) -> None:
    assert await facade.ask() == 503
    joining = await facade.joining(runtime, reach=reach)
    await facade.until(200)
    await joining.leave()
    assert await facade.ask() == 503


@pytest.mark.parametrize("reach", ["dial", "tunnel"])
async def test_a_stream_goes_on_at_another_machine(
    facade: Facade, runtime: FakeRuntime, reach: str, tmp_path: Path
) -> None:
    async with FakeRuntime(socket=str(tmp_path / "other.sock")) as other:
        gate = Gate(3)
        runtime.script = gate
        await facade.joining(runtime, reach=reach)
        await facade.until_machines(1)
        asking = asyncio.create_task(facade.ask())
        await gate.reached.wait()
        await facade.joining(other, reach=reach)
        await facade.until_machines(2)
        await runtime.kill()
        assert await asking == 200
        assert len(other.requests) == 1


async def test_many_streams_and_cancels_share_a_tunnel(facade: Facade, runtime: FakeRuntime) -> None:
    await facade.joining(runtime, reach="tunnel")
    await facade.until(200)
    assert await asyncio.gather(*(facade.ask() for _ in range(50))) == [200] * 50
    gate = Gate(2)
    runtime.script = gate
    tasks = [asyncio.create_task(facade.ask()) for _ in range(20)]
    await runtime.busy(20)
    for task in tasks:
        task.cancel()
    await runtime.idle()
    assert runtime.cancelled == 20


async def test_a_machine_without_a_token_stays_outside(
    facade: Facade, runtime: FakeRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    await facade.joining(runtime, token="mt_live_" + "x" * 43)
    await logged(caplog, "The machine token is not valid.")
    assert await facade.ask() == 503


async def test_a_revoked_token_ends_the_stay(facade: Facade, runtime: FakeRuntime) -> None:
    token, record = await facade.tokens.create("gpu1")
    await facade.joining(runtime, token=token)
    await facade.until(200)
    await facade.tokens.revoke(record.id)
    await facade.until(503)


async def test_a_revoked_token_ends_the_stay_of_a_machine_whose_streams_run(
    facade: Facade, runtime: FakeRuntime
) -> None:
    token, record = await facade.tokens.create("gpu1")
    await facade.joining(runtime, token=token)
    await facade.until_machines(1)
    told = asyncio.Event()

    async def without_end() -> None:
        """What keeps coming of a stream is as good as a word of its machine."""
        while not told.is_set():
            for machine in facade.view.machines():
                now_s = time.monotonic()
                facade.view.heard(MachineId(machine.info.id), now_s=now_s, lease_until_s=now_s + 1)
            await asyncio.sleep(0.01)

    streaming = asyncio.create_task(without_end())
    await facade.tokens.revoke(record.id)
    await facade.until_machines(0)
    told.set()
    await streaming


async def test_a_machine_keeps_its_name_from_those_with_other_tokens(
    facade: Facade, runtime: FakeRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    async with FakeRuntime() as thief:
        runtime.name = thief.name = "gpu1"
        thief.epoch = 2**64 - 1
        joining = await facade.joining(runtime)
        await facade.until(200)
        await facade.joining(thief)
        await logged(caplog, "a runtime with another token is online as 'gpu1'")
        assert await asyncio.gather(*(facade.ask() for _ in range(5))) == [200] * 5
        assert thief.requests == []
        # Once the name is nobody's, anybody may have it.
        await joining.leave()
        await facade.until(200)
        assert thief.requests


async def test_a_machine_that_comes_back_elsewhere_is_dialled_there(facade: Facade, runtime: FakeRuntime) -> None:
    """The same life, which says the same of itself: a laptop in another network."""
    token, _ = await facade.tokens.create("laptop")
    async with FakeRuntime() as moved:
        moved.name, moved.epoch = runtime.name, runtime.epoch
        joining = await facade.joining(runtime, token=token)
        await facade.until(200)
        await joining.close()
        await runtime.kill()
        await facade.joining(moved, token=token)
        await facade.until(200)
        assert moved.requests


async def test_doors_of_machines_that_are_gone_are_closed(
    facade: Facade, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnels, "KEPT_S", 0.05)
    monkeypatch.setattr(tunnels, "MAX_DOORS", 2)
    for number in range(6):
        runtime.name = f"container-{number}"
        joining = await facade.joining(runtime, reach="tunnel")
        await facade.until(200)
        # Without a farewell, as when it is killed.
        await joining.close()
        await facade.until_machines(0)


async def test_the_later_of_two_with_one_name_stays(
    facade: Facade, runtime: FakeRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    token, _ = await facade.tokens.create("gpu1")
    async with FakeRuntime() as later:
        runtime.name = later.name = "gpu1"
        await facade.joining(runtime, token=token)
        await facade.until(200)
        later.epoch = runtime.epoch + 1
        await facade.joining(later, token=token)
        await logged(caplog, "another runtime that started later has joined as 'gpu1'")
        runtime.requests.clear()
        await facade.until(200)
        assert await asyncio.gather(*(facade.ask() for _ in range(5))) == [200] * 5
        assert runtime.requests == []


async def test_a_machine_that_cannot_be_dialled_uses_a_tunnel(facade: Facade, runtime: FakeRuntime) -> None:
    """What it says about its address is wrong, and it opens tunnels."""
    token, _ = await facade.tokens.create("nat")
    joining = Joining(
        facade.grpc,
        cast(ThisMachine, Machine(runtime)),
        address="127.0.0.1:1",
        token=token,
        socket=runtime.socket,
        security=Security(),
    )
    facade.stack.push_async_callback(joining.close)
    joining.start()
    await facade.until(200)


def _made_at(seconds: int) -> model_pb2.Model:
    return model_pb2.Model(id="a", create_time=Timestamp(seconds=seconds))


@pytest.mark.parametrize(
    ("first", "status", "words"),
    [
        (mesh_pb2.JoinRequest(), grpc.StatusCode.INVALID_ARGUMENT, "machine: must be the first message."),
        (
            mesh_pb2.JoinRequest(machine=machine_pb2.Machine(id="", epoch=1)),
            grpc.StatusCode.INVALID_ARGUMENT,
            "machine.id: must be 1 to 128 printable characters.",
        ),
        (
            mesh_pb2.JoinRequest(
                machine=machine_pb2.Machine(id="a", epoch=1, models=[model_pb2.Model(id="a\x1b[31m")])
            ),
            grpc.StatusCode.INVALID_ARGUMENT,
            "machine.models.id: must be 1 to 300 printable characters.",
        ),
        (
            mesh_pb2.JoinRequest(machine=machine_pb2.Machine(id="a", epoch=1, models=[_made_at(2**62)])),
            grpc.StatusCode.INVALID_ARGUMENT,
            "machine.models.create_time: must be between the years 1970 and 9999.",
        ),
        (
            mesh_pb2.JoinRequest(machine=machine_pb2.Machine(id="a", epoch=1, address="nowhere")),
            grpc.StatusCode.INVALID_ARGUMENT,
            "machine.address: must be HOST:PORT with a port from 0 to 65535, for example 127.0.0.1:8080.",
        ),
        (
            mesh_pb2.JoinRequest(machine=machine_pb2.Machine(id="a", epoch=1, address="127.0.0.1:1")),
            grpc.StatusCode.INVALID_ARGUMENT,
            "machine.address: cannot be reached from the facade, and the machine opens no tunnels.",
        ),
    ],
    ids=["nothing", "no name", "no text", "no time", "no address", "nobody there"],
)
async def test_bad_machines_are_refused_in_words(
    facade: Facade, first: mesh_pb2.JoinRequest, status: grpc.StatusCode, words: str
) -> None:
    token, _ = await facade.tokens.create("a machine")

    async def requests() -> AsyncIterator[mesh_pb2.JoinRequest]:
        yield first

    async with grpc.aio.insecure_channel(facade.grpc) as channel:
        call = mesh_pb2_grpc.MeshServiceStub(channel).Join(requests(), metadata=(("authorization", f"Bearer {token}"),))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert (caught.value.code(), caught.value.details()) == (status, words)


async def test_nobody_gets_a_tunnel_that_was_not_asked_for(facade: Facade) -> None:
    token, _ = await facade.tokens.create("a machine")

    async def requests() -> AsyncIterator[mesh_pb2.TunnelRequest]:
        yield mesh_pb2.TunnelRequest(tunnel_id="guessed")

    async with grpc.aio.insecure_channel(facade.grpc) as channel:
        call = mesh_pb2_grpc.MeshServiceStub(channel).Tunnel(
            requests(), metadata=(("authorization", f"Bearer {token}"),)
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
