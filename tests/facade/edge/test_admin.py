"""Operators look at the machines of a mesh and change what they serve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from facade.app import running
from mantler import messages as m
from mantler.admin import AdminClient
from mantler.errors import ErrorCode, MantlerError
from mantler.grpc_errors import from_rpc_error
from mantler.mesh.machine import ModelLoad
from mantler.tenancy.operator import FILE, operator_token
from mantler.tenancy.store import KeyStore
from mantler.v1 import admin_pb2, admin_pb2_grpc
from tests.facade.conftest import AUTH, CHAT, KEY, MODEL, chat, make_settings
from tests.fake_runtime import FakeRuntime, Gate, failing, model

COLD = "cold:1b"
LOADING = m.LoadProgress(m.LoadStage.LOADING, 1, 2)


@dataclass
class Mesh:
    """Two machines, their facade, and an operator."""

    gpu1: FakeRuntime
    gpu2: FakeRuntime
    admin: AdminClient
    channel: grpc.aio.Channel
    url: str
    http: aiohttp.ClientSession
    database_url: str

    async def models(self, headers: dict[str, str] | None = None) -> list[str]:
        """What ``GET /v1/models`` lists."""
        async with self.http.get(f"{self.url}/v1/models", headers=headers or AUTH) as response:
            return [each["id"] for each in (await response.json())["data"]]

    async def ask(
        self, model_id: str = MODEL, text: str = "one", headers: dict[str, str] | None = None, path: str = CHAT
    ) -> tuple[int, Any]:
        """Status and JSON of a conversation."""
        body = {**chat(text), "model": model_id}
        async with self.http.post(f"{self.url}{path}", json=body, headers=headers or AUTH) as response:
            return response.status, await response.json()

    async def new_key(self, **granted: Any) -> dict[str, str]:
        """Headers with a new key."""
        async with await KeyStore.open(self.database_url) as keys:
            key, _ = await keys.create("test", **granted)
        return {"Authorization": f"Bearer {key}"}

    async def deploy(self, machine: str, model_id: str = COLD) -> list[m.LoadProgress]:
        """All reports."""
        async with aclosing(self.admin.deploy(machine, model_id)) as reports:
            return [report async for report in reports]


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with AsyncExitStack() as stack:
        gpu1, gpu2 = FakeRuntime(), FakeRuntime()
        for name, runtime in (("gpu1", gpu1), ("gpu2", gpu2)):
            runtime.name = name
            await stack.enter_async_context(runtime)
        settings = make_settings(tmp_path, gpu1.address, machines=[gpu2.address], resume_within_s=0.0)
        bound = await stack.enter_async_context(running(settings))
        address = f"127.0.0.1:{bound.grpc_port}"
        admin = await stack.enter_async_context(AdminClient(address, operator_token(tmp_path)))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        yield Mesh(gpu1, gpu2, admin, channel, f"http://{bound.host}:{bound.port}", http, settings.database_url)


CALLS = {
    "ListMachines": admin_pb2.ListMachinesRequest(),
    "DrainMachine": admin_pb2.DrainMachineRequest(machine="gpu1"),
    "UndeployModel": admin_pb2.UndeployModelRequest(machine="gpu1", model=MODEL),
    "DeployModel": admin_pb2.DeployModelRequest(machine="gpu1", model=COLD),
}


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer ",
        f"Bearer {KEY}",
        "Bearer mo_live_" + "x" * 43,
        "Bearer mt_live_" + "x" * 43,
        "Basic mo_live_",
    ],
)
async def test_others_are_refused(mesh: Mesh, method: str, authorization: str | None) -> None:
    stub = admin_pb2_grpc.AdminServiceStub(mesh.channel)
    metadata = () if authorization is None else (("authorization", authorization),)
    call = getattr(stub, method)(CALLS[method], metadata=metadata)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (anext(aiter(call)) if method == "DeployModel" else call)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert from_rpc_error(caught.value).code is ErrorCode.INVALID_TOKEN
    assert mesh.gpu1.models[COLD].state is m.ModelState.STORED
    assert (mesh.gpu1.draining, await mesh.models()) == (False, ["org/other:tag", MODEL])


async def test_operators_are_not_served_over_http(mesh: Mesh, tmp_path: Path) -> None:
    headers = {"Authorization": f"Bearer {operator_token(tmp_path)}"}
    status, _ = await mesh.ask(path="/mantler.v1.AdminService/ListMachines", headers=headers)
    assert status == 404


@pytest.mark.parametrize("variable", [True, False])
async def test_the_token_of_the_settings_is_the_only_one(tmp_path: Path, variable: bool) -> None:
    token = "mo_live_" + "o" * 32
    changes = {"operator_token": token} if variable else {}
    async with running(make_settings(tmp_path, "127.0.0.1:1", **changes)) as bound:
        assert (tmp_path / FILE).exists() is not variable
        async with AdminClient(f"127.0.0.1:{bound.grpc_port}", token) as admin:
            if variable:
                assert await admin.machines() == []
                return
            with pytest.raises(MantlerError) as caught:
                await admin.machines()
        assert caught.value.code is ErrorCode.INVALID_TOKEN


async def test_machines_are_listed(mesh: Mesh) -> None:
    mesh.gpu1.loads = (ModelLoad(MODEL, running=3, queued=2, running_tokens=500),)
    await mesh.admin.drain("gpu1", draining=False)  # looks at once
    first, second = await mesh.admin.machines()
    assert (first.info.id, first.info.address, first.online, first.broken) == ("gpu1", mesh.gpu1.address, True, False)
    assert first.report is not None
    assert first.report.models == mesh.gpu1.loads
    assert first.info.epoch == mesh.gpu1.epoch
    assert [each.id for each in first.info.models] == [COLD, "org/other:tag", MODEL]
    assert (second.info.id, second.own_tokens, second.info.draining) == ("gpu2", 0, False)


async def test_own_tokens_are_those_of_running_requests(mesh: Mesh) -> None:
    gate = mesh.gpu1.script = mesh.gpu2.script = Gate(1)
    asking = asyncio.create_task(mesh.ask())
    await gate.reached.wait()
    machines = await mesh.admin.machines()
    assert sorted(status.own_tokens > 0 for status in machines) == [False, True]
    gate.opened.set()
    assert (await asking)[0] == 200
    assert [status.own_tokens for status in await mesh.admin.machines()] == [0, 0]


async def test_a_machine_that_fails_again_and_again_is_broken(mesh: Mesh) -> None:
    mesh.gpu2.script = failing(MantlerError(ErrorCode.INTERNAL_ERROR, "It is broken."))
    key = await mesh.new_key(allowed_machines=("gpu2",))
    for _ in range(5):
        assert (await mesh.ask(headers=key))[0] == 500
    assert [status.broken for status in await mesh.admin.machines()] == [False, True]


async def test_a_drained_machine_gets_nothing(mesh: Mesh) -> None:
    gate = mesh.gpu1.script = Gate(1)
    key = await mesh.new_key(allowed_machines=("gpu1",))
    running_there = asyncio.create_task(mesh.ask(headers=key))
    await gate.reached.wait()
    await mesh.admin.drain("gpu1")
    assert mesh.gpu1.draining
    for number in range(8):
        assert (await mesh.ask(text=str(number)))[0] == 200
    assert (len(mesh.gpu1.requests), len(mesh.gpu2.requests)) == (1, 8)
    gate.opened.set()
    assert (await running_there)[0] == 200
    assert [status.info.draining for status in await mesh.admin.machines()] == [True, False]
    await mesh.admin.drain("gpu2")
    assert await mesh.models() == []
    assert (await mesh.ask())[0] == 503
    await mesh.admin.drain("gpu1", draining=False)
    assert (await mesh.ask())[0] == 200
    assert await mesh.models() == ["org/other:tag", MODEL]


async def test_deployed_serves_at_once_and_undeployed_does_not(mesh: Mesh) -> None:
    assert (await mesh.ask(COLD))[0] == 404
    reports = await mesh.deploy("gpu2")
    assert reports[0] == LOADING
    assert [report.stage for report in reports[1:]] == [m.LoadStage.READY]
    assert reports[-1].model == model(COLD)
    assert await mesh.models() == [COLD, "org/other:tag", MODEL]
    assert (await mesh.ask(COLD))[0] == 200
    assert [request.model for request in mesh.gpu2.requests] == [COLD]
    await mesh.admin.undeploy("gpu2", COLD)
    assert await mesh.models() == ["org/other:tag", MODEL]
    assert (await mesh.ask(COLD))[0] == 404


async def test_only_what_serves_is_listed(mesh: Mesh) -> None:
    for state in set(m.ModelState) - {m.ModelState.READY}:
        mesh.gpu1.models[MODEL] = mesh.gpu2.models[MODEL] = model(MODEL, state)
        assert await mesh.models() == ["org/other:tag"]
        async with mesh.http.get(f"{mesh.url}/v1/models/{MODEL}", headers=AUTH) as response:
            assert response.status == 404
    mesh.gpu2.models[MODEL] = model(MODEL)
    assert await mesh.models() == ["org/other:tag", MODEL]


async def test_what_cannot_be_done_is_said(mesh: Mesh) -> None:
    async def refused(machine: str, model_id: str = COLD) -> MantlerError:
        with pytest.raises(MantlerError) as caught:
            await mesh.deploy(machine, model_id)
        return caught.value

    unknown = await refused("gpu3")
    assert (unknown.code, unknown.param) == (ErrorCode.MACHINE_NOT_FOUND, "machine")
    assert unknown.message == "The mesh has no machine 'gpu3'. It has gpu1, gpu2."
    assert repr(await refused("")) == repr(await refused("x" * 129))
    assert (await refused("x" * 129)).message == "machine: must be the id of a machine, of 1 to 128 characters."
    assert (await refused("gpu1", "")).message == "model: must be the id of a model, of 1 to 256 characters."
    theirs = await refused("gpu1", "nope")
    assert (theirs.code, theirs.message) == (ErrorCode.MODEL_NOT_FOUND, "The model is not known.")
    with pytest.raises(MantlerError, match="not loaded"):
        await mesh.admin.undeploy("gpu1", COLD)
    await mesh.gpu1.kill()
    async with asyncio.timeout(10):
        while (await mesh.admin.machines())[0].online:
            await mesh.models()  # looks again
    offline = await refused("gpu1")
    assert (offline.code, offline.message) == (ErrorCode.MACHINE_OFFLINE, "gpu1 is offline.")


async def test_a_machine_that_dies_while_it_loads(mesh: Mesh) -> None:
    async def endless() -> AsyncGenerator[m.LoadProgress, None]:
        yield LOADING
        await asyncio.Event().wait()

    mesh.gpu2.load_script = endless
    async with aclosing(mesh.admin.deploy("gpu2", COLD)) as reports:
        assert await anext(reports) == LOADING
        await mesh.gpu2.kill()
        with pytest.raises(MantlerError) as caught:
            await anext(reports)
    assert caught.value.code in (ErrorCode.MACHINE_OFFLINE, ErrorCode.RUNTIME_UNAVAILABLE)
    assert caught.value.message.startswith(f"gpu2 was lost while it loaded {COLD}: The ")
    assert "Deploy the model again once the machine is back" in caught.value.message


async def test_whoever_leaves_holds_nothing(mesh: Mesh) -> None:
    left = asyncio.Event()

    async def endless() -> AsyncGenerator[m.LoadProgress, None]:
        try:
            yield LOADING
            await asyncio.Event().wait()
        finally:
            left.set()

    mesh.gpu2.load_script = endless
    async with aclosing(mesh.admin.deploy("gpu2", COLD)) as reports:
        assert await anext(reports) == LOADING
    async with asyncio.timeout(10):
        await left.wait()
    assert mesh.gpu2.models[COLD].state is m.ModelState.STORED


async def test_a_key_uses_its_machines_only(mesh: Mesh) -> None:
    key = await mesh.new_key(allowed_machines=("gpu2", "gpu9"))
    for number in range(6):
        assert (await mesh.ask(text=str(number), headers=key))[0] == 200
    assert (len(mesh.gpu1.requests), len(mesh.gpu2.requests)) == (0, 6)
    await mesh.deploy("gpu1")
    assert await mesh.models() == [COLD, "org/other:tag", MODEL]
    assert await mesh.models(key) == ["org/other:tag", MODEL]
    wanted = (403, "This API key may not use the machines that serve the model.")

    async def said(path: str, body: dict[str, Any]) -> tuple[int, str]:
        async with mesh.http.post(f"{mesh.url}{path}", json={"model": COLD, **body}, headers=key) as response:
            error = (await response.json())["error"]
            assert (error["code"], error["param"]) == ("model_not_allowed", "model")
            return response.status, error["message"]

    assert await said(CHAT, chat() | {"model": COLD}) == wanted
    assert await said("/v1/completions", {"prompt": ["a", "b"]}) == wanted
    assert await said("/v1/completions", {"prompt": [1, 2], "echo": True}) == wanted
    assert await said("/v1/tokenize", {"prompt": "a"}) == wanted
    assert await said("/v1/detokenize", {"tokens": [1]}) == wanted
    async with mesh.http.get(f"{mesh.url}/v1/models/{COLD}", headers=key) as response:
        assert response.status == 403
    status, answer = await mesh.ask("nope", headers=key)
    assert (status, "may use org/other:tag, smollm2:135m." in answer["error"]["message"]) == (404, True)
    await mesh.admin.drain("gpu2")
    assert (await mesh.ask(headers=key))[0] == 503
    assert await mesh.models(key) == []
