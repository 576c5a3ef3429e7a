"""Connections to machines: opened when they are needed, and closed when their machines are gone."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Container

import pytest

from mantler.mesh.directory import Directory
from mantler.routing import client as client_module
from mantler.routing.client import MeshClient, connected
from mantler.routing.clients import Clients
from mantler.routing.view import View
from mantler.security.errors import SecurityError
from tests.fake_runtime import FakeRuntime, Gate
from tests.mantler.routing.etcd_mesh import ask, until

MACHINES = 20


def come(view: View, runtime: FakeRuntime) -> None:
    now_s = time.monotonic()
    view.registered(runtime.info(), runtime.address, now_s=now_s, lease_until_s=now_s + 60)


def connections(client: MeshClient) -> int:
    return len(client._clients)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_a_connection_that_is_used_or_wanted_stays() -> None:
    async with Clients() as clients:
        with clients.using("127.0.0.1:1") as used:
            clients.keep("127.0.0.1:2")
            with clients.using("127.0.0.1:3"), clients.using("127.0.0.1:4"):
                pass
            await clients.close_unused({"127.0.0.1:3"})
            assert len(clients) == 3
            with clients.using("127.0.0.1:1") as again:
                assert again is used
        await clients.close_unused(frozenset())
        assert len(clients) == 1, "only what is kept"
        with pytest.raises(SecurityError), clients.using("10.0.0.7:50051"):
            raise AssertionError("it is not to be opened")
        assert len(clients) == 1


async def test_machines_that_come_and_go_leave_no_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "TIDY_EVERY_S", 0.02)
    view = View(Directory())
    async with connected([], resume_within_s=1.0, view=view) as client:
        before = 0
        for number in range(MACHINES):
            async with FakeRuntime() as runtime:
                runtime.name = f"gpu{number}"
                come(view, runtime)
                assert await ask(client) == "one two"
                assert connections(client) == 1
                view.left(runtime.info(), now_s=time.monotonic())
                await until(lambda: connections(client) == 0)
            if number == 4:
                before = descriptors()
        # gRPC closes its sockets a moment later, from threads of its own.
        await until(lambda: descriptors() <= before + 2)


async def test_a_stream_of_a_machine_that_is_gone_keeps_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "TIDY_EVERY_S", 0.02)
    view = View(Directory())
    async with connected([], resume_within_s=1.0, view=view) as client, FakeRuntime() as runtime:
        runtime.script = gate = Gate(2)
        come(view, runtime)
        asking = asyncio.create_task(ask(client))
        await gate.reached.wait()
        view.left(runtime.info(), now_s=time.monotonic())
        tidied = asyncio.Event()
        close_unused = client._clients.close_unused

        async def close(wanted: Container[str]) -> None:
            await close_unused(wanted)
            tidied.set()

        monkeypatch.setattr(client._clients, "close_unused", close)
        await tidied.wait()
        gate.opened.set()
        assert await asking == "one two"
        await until(lambda: connections(client) == 0)
