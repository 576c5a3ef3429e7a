"""The commands that operate a mesh, against a facade of this process and its fake machines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from facade.app import running
from mantler import messages as m
from mantler.errors import ErrorCode, MantlerError
from mantler.mesh.machine import ModelLoad
from mantler.tenancy.operator import FILE, operator_token
from tests.facade.conftest import MODEL, make_settings
from tests.fake_runtime import FakeRuntime
from tests.mantler.cli.conftest import Mantler, Result
from tests.mantler.cli.test_models import ended, mantler_process, started

COLD = "cold:1b"


@dataclass
class Mesh:
    """Two machines and the address of their facade."""

    gpu1: FakeRuntime
    gpu2: FakeRuntime
    grpc: str

    async def run(self, *arguments: str) -> Result:
        """A command of the operator."""
        return await mantler_process(*arguments, "--grpc", self.grpc)


@pytest.fixture
async def mesh(home: Path) -> AsyncIterator[Mesh]:
    async with AsyncExitStack() as stack:
        gpu1, gpu2 = FakeRuntime(), FakeRuntime()
        for name, runtime in (("gpu1", gpu1), ("gpu2", gpu2)):
            runtime.name = name
            await stack.enter_async_context(runtime)
        gpu1.loads = (ModelLoad(MODEL, running=3, queued=2, running_tokens=500),)
        settings = make_settings(home, gpu1.address, machines=[gpu2.address])
        bound = await stack.enter_async_context(running(settings))
        yield Mesh(gpu1, gpu2, f"127.0.0.1:{bound.grpc_port}")


async def test_machines(mesh: Mesh) -> None:
    table = await mesh.run("machines")
    assert table.code == 0, table.err
    head, first, second = table.out.splitlines()
    assert head.removesuffix("started (UTC)").split() == [
        "id", "address", "state", "models", "devices", "running", "queued", "tokens"
    ]  # fmt: skip
    models = f"org/other:tag,{MODEL}"
    assert first.split()[:8] == ["gpu1", mesh.gpu1.address, "online", models, "fake", "3", "2", "500"]
    assert second.split()[:8] == ["gpu2", mesh.gpu2.address, "online", models, "fake", "0", "0", "0"]
    listed = json.loads((await mesh.run("machines", "--json")).out)
    assert listed[0] == {
        "id": "gpu1",
        "address": mesh.gpu1.address,
        "state": "online",
        "models": ["org/other:tag", MODEL],
        "devices": ["fake"],
        "running": 3,
        "queued": 2,
        "held_tokens": 500,
        "own_tokens": 0,
        "started_unix_s": mesh.gpu1.epoch / 1e9,
    }


async def test_mantles(mesh: Mesh) -> None:
    table = await mesh.run("mantles")
    assert [line.split() for line in table.out.splitlines()[1:]] == [
        ["org/other:tag", "gpu1", "ready", "0/16", "0/64", "0", "8192", "fake"],
        ["org/other:tag", "gpu2", "ready", "0/16", "0/64", "0", "8192", "fake"],
        [MODEL, "gpu1", "ready", "3/16", "2/64", "500", "8192", "fake"],
        [MODEL, "gpu2", "ready", "0/16", "0/64", "0", "8192", "fake"],
    ]
    [*_, busy, _] = json.loads((await mesh.run("mantles", "--json")).out)
    assert (busy["model"], busy["slots_used"], busy["slots"], busy["held_tokens"]) == (MODEL, 3, 16, 500)


async def test_deploying_on_all_and_taking_it_away(mesh: Mesh) -> None:
    deployed = await mesh.run("deploy", COLD, "--all")
    assert (deployed.code, deployed.out) == (0, ""), deployed.err
    assert sorted(deployed.err.splitlines()) == [
        "gpu1 serves cold:1b.",
        "gpu2 serves cold:1b.",
        "loading cold:1b on gpu1 (2 B)",
        "loading cold:1b on gpu1: 50 %, 1 B of 2 B",
        "loading cold:1b on gpu2 (2 B)",
        "loading cold:1b on gpu2: 50 %, 1 B of 2 B",
    ]
    gone = await mesh.run("undeploy", COLD, "--machine", "gpu2")
    assert (gone.code, gone.err) == (0, "gpu2 does not serve cold:1b any more.\n")
    rest = await mesh.run("undeploy", COLD, "--all")
    assert (rest.code, rest.err) == (0, "gpu1 does not serve cold:1b any more.\n")
    nothing = await mesh.run("undeploy", COLD, "--all")
    assert (nothing.code, nothing.err.splitlines()[0]) == (1, "error: no machine has cold:1b in memory")


async def test_one_that_fails_does_not_stop_the_others(mesh: Mesh) -> None:
    del mesh.gpu1.models[COLD]
    result = await mesh.run("deploy", COLD, "--machine", "gpu1", "--machine", "gpu2")
    assert result.code == 1
    assert "gpu2 serves cold:1b.\n" in result.err
    assert result.err.endswith("error: gpu1: The model is not known\nhint: `mantler mantles` shows what is deployed\n")
    result = await mesh.run("deploy", "nope", "--machine", "gpu1", "--machine", "gpu3")
    assert result.code == 1
    assert "error: 2 machines failed\n  gpu1: The model is not known\n  gpu3: The mesh has no machine" in result.err


async def test_a_load_that_fails_late(mesh: Mesh) -> None:
    async def failing() -> AsyncGenerator[m.LoadProgress, None]:
        yield m.LoadProgress(m.LoadStage.DOWNLOADING, 0, 2)
        raise MantlerError(ErrorCode.INVALID_REQUEST, "cold:1b does not fit.")

    mesh.gpu1.load_script = failing
    result = await mesh.run("deploy", COLD, "--machine", "gpu1")
    assert result.code == 1
    assert result.err.splitlines()[0] == "downloading cold:1b on gpu1 (2 B)"


async def test_draining_and_waiting(mesh: Mesh) -> None:
    assert (await mesh.run("drain", "gpu1")).err == "gpu1 takes no new requests.\n"
    assert mesh.gpu1.draining
    assert (await mesh.run("machines")).out.splitlines()[1].split()[2] == "draining"
    assert " draining " in (await mesh.run("mantles")).out
    waiting = await started("drain", "gpu1", "--wait", "--grpc", mesh.grpc)
    assert waiting.stderr is not None
    async with asyncio.timeout(20):
        assert await waiting.stderr.readline() == b"gpu1 takes no new requests.\n"
        assert await waiting.stderr.readline() == b"5 requests still run or wait there.\n"
    mesh.gpu1.loads = ()
    result = await ended(waiting)
    assert (result.code, result.err) == (0, "Nothing runs on gpu1.\n")
    assert (await mesh.run("drain", "gpu1", "--undo")).err == "gpu1 takes requests again.\n"
    assert not mesh.gpu1.draining


async def test_a_machine_that_is_not_there(mesh: Mesh) -> None:
    result = await mesh.run("drain", "gpu7")
    assert (result.code, result.err) == (
        1,
        "error: The mesh has no machine 'gpu7'. It has gpu1, gpu2\nhint: `mantler machines` lists them\n",
    )


async def test_a_wrong_token(mesh: Mesh, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    operator_token(tmp_path / "other")
    result = await mesh.run("machines", "--home", str(tmp_path / "other"))
    assert result.code == 1
    assert result.err.startswith("error: This call is for operators")
    assert "hint: the token is in operator-token of the facade's home" in result.err
    monkeypatch.setenv("MANTLER_OPERATOR_TOKEN", operator_token(home))
    assert (await mesh.run("machines", "--home", str(tmp_path / "other"))).code == 0
    monkeypatch.setenv("MANTLER_OPERATOR_TOKEN", "secret")
    result = await mesh.run("machines")
    assert result.code == 2
    assert result.err.startswith("error: MANTLER_OPERATOR_TOKEN: must be mo_live_ and what stands after it")
    assert "secret" not in result.err


async def test_no_facade(home: Path) -> None:
    operator_token(home)
    result = await mantler_process("machines", "--grpc", "127.0.0.1:1")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("error: no facade answers at 127.0.0.1:1\nhint: `mantler facade` serves gRPC")
    result = await mantler_process("deploy", COLD, "--machine", "a", "--machine", "b", "--grpc", "127.0.0.1:1")
    assert result.code == 1
    assert "\n  a: no facade answers at 127.0.0.1:1\n  b: no facade answers" in result.err
    async with FakeRuntime() as runtime:
        result = await mantler_process("machines", "--grpc", runtime.address)
    assert result.code == 1
    assert result.err.startswith(f"error: what answers at {runtime.address} does not serve operators\nhint: it is a")


def test_no_token(mantler: Mantler, home: Path) -> None:
    result = mantler("machines")
    assert result.code == 1
    assert result.err.startswith(f"error: there is no operator's token: {home / FILE} does not exist\nhint: the first")
    assert not home.exists()
    home.mkdir()
    (home / FILE).write_text("mk_live_")
    result = mantler("machines")
    assert (result.code, "holds no operator's token" in result.err) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("deploy", COLD), "error: --machine: say on which machine\nhint: `mantler machines` lists them"),
        (("deploy", COLD, "--all", "--machine", "a"), "error: --all: means every machine"),
        (("undeploy", COLD), "error: --machine: say on which"),
        (("drain", "a", "--undo", "--wait"), "error: --wait: there is nothing to wait for"),
        (("machines", "--grpc", "nowhere"), "error: --grpc: must be HOST:PORT"),
        (("unload",), "error: No such command 'unload'\nhint: did you mean `mantler undeploy`?"),
        (("tokens", "rm"), "error: No such command 'rm'\nhint: did you mean `mantler tokens revoke`?"),
    ],
)
def test_bad_usage(arguments: tuple[str, ...], error: str, mantler: Mantler) -> None:
    result = mantler(*arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(error), result.err


async def test_an_empty_mesh(home: Path) -> None:
    async with running(make_settings(home, "127.0.0.1:1")) as bound:
        grpc = f"127.0.0.1:{bound.grpc_port}"
        machines = await mantler_process("machines", "--grpc", grpc)
        mantles = await mantler_process("mantles", "--grpc", grpc)
        everywhere = await mantler_process("deploy", COLD, "--all", "--grpc", grpc)
    assert (machines.code, machines.out) == (0, "")
    assert machines.err.startswith(f"No machines. `mantler runtime --mesh {grpc}`")
    assert mantles.err.startswith("No machine that is online has a model in memory.")
    assert (everywhere.code, everywhere.err.splitlines()[0]) == (1, "error: no machine is online")


def test_a_life_of_a_token(mantler: Mantler) -> None:
    made = mantler("tokens", "create", "--name", "gpu1")
    assert made.code == 0
    assert made.out.startswith("mt_live_")
    assert "shown this once" in made.err
    assert "mt_live_" not in made.err
    other = json.loads(mantler("tokens", "create", "--json").out)
    assert (other["name"], other["token"][:8]) == ("machines", "mt_live_")
    listed = json.loads(mantler("tokens", "list", "--json").out)
    assert {each["name"]: each["revoked_unix_s"] for each in listed} == {"gpu1": None, "machines": None}
    assert "token" not in listed[0]
    assert mantler("tokens", "revoke", other["id"]).err == f"{other['id']} is revoked.\n"
    again = mantler("tokens", "revoke", other["id"], "token_none")
    assert again.code == 1
    assert again.err.startswith(f"{other['id']} was revoked already, 2")
    assert again.err.endswith("error: there is no token token_none\nhint: `mantler tokens list` shows the ids\n")
    rows = [line.split() for line in mantler("tokens", "list").out.splitlines()[1:]]
    assert {row[1]: row[2] for row in rows} == {"gpu1": "active", "machines": "revoked"}
    assert mantler("tokens", "create", "--name", "").err.startswith("error: name: must be 1 to 128")


def test_no_tokens(mantler: Mantler) -> None:
    result = mantler("tokens", "list")
    assert (result.code, result.out) == (0, "")
    assert "`mantler tokens create`" in result.err
    assert json.loads(mantler("tokens", "list", "--json").out) == []


def test_a_key_for_some_machines(mantler: Mantler) -> None:
    made = json.loads(mantler("keys", "create", "--machines", "gpu1:50051, gpu2", "--machines", "gpu3", "--json").out)
    assert made["allowed_machines"] == ["gpu1:50051", "gpu2", "gpu3"]
    head, row = mantler("keys", "list").out.splitlines()
    assert " machines " in head
    assert " gpu1:50051,gpu2,gpu3 " in row
    empty = mantler("keys", "create", "--machines", ",")
    assert (empty.code, empty.err.splitlines()[0]) == (2, "error: --machines: names no machine")
