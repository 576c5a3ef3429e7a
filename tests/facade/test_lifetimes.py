"""Connections, clients and runtimes that go away."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import aiohttp
import pytest

from facade.app import running, serve
from mantler import messages as m
from mantler.errors import MantlerError
from tests.facade.conftest import AUTH, Facade, chat, events, make_settings, raw_request
from tests.fake_runtime import Body, FakeRuntime, Gate


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("stop_after", [0, 1, 2], ids=["waiting", "started", "speaking"])
async def test_a_client_that_leaves_frees_the_runtime(facade: Facade, stream: bool, stop_after: int) -> None:
    gate = facade.runtime.script = Gate(stop_after)
    _, writer = await asyncio.open_connection("127.0.0.1", facade.port)
    writer.write(raw_request(chat(stream=stream)))
    await gate.reached.wait()
    assert facade.runtime.active == 1
    writer.close()
    await asyncio.wait_for(facade.runtime.idle(), 5)
    assert facade.runtime.cancelled == 1
    gate.opened.set()
    assert (await facade.post(chat()))[0] == 200


class Endless:
    """A script that never ends by itself."""

    def __init__(self) -> None:
        self.said = 0

    async def __call__(self, request: m.GenerateRequest) -> AsyncGenerator[Body, None]:
        yield m.Started(request.model, 1)
        while True:
            yield m.Delta("x" * 10_000, (1,))
            self.said += 1


@pytest.mark.parametrize("changes", [{"request_timeout_s": 0.5}])
async def test_a_reader_that_takes_nothing_is_cut_off_at_the_deadline(
    facade: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("facade.sse.CLOSE_TIMEOUT_S", 0.1)
    facade.runtime.script = Endless()
    reader, writer = await asyncio.open_connection("127.0.0.1", facade.port, limit=2**16)
    writer.write(raw_request(chat(stream=True)))
    await reader.readuntil(b"data: ")
    await asyncio.wait_for(facade.runtime.idle(), 5)
    tail = b""
    with contextlib.suppress(ConnectionError):
        while block := await asyncio.wait_for(reader.read(2**20), 5):
            tail = (tail + block)[-1000:]
    assert b"[DONE]" not in tail
    writer.close()


async def test_a_reader_that_stops_reading_holds_the_runtime_back(facade: Facade) -> None:
    script = facade.runtime.script = Endless()
    reader, writer = await asyncio.open_connection("127.0.0.1", facade.port, limit=2**16)
    writer.write(raw_request(chat(stream=True)))
    await reader.readuntil(b"data: ")
    before = -1
    async with asyncio.timeout(20):
        while script.said > before:  # until it stands still: all buffers in between are full
            before = script.said
            await facade.get("/v1/models")
            await asyncio.sleep(0.3)
    assert facade.runtime.active == 1
    assert script.said < 10_000
    writer.transport.abort()
    await asyncio.wait_for(facade.runtime.idle(), 5)


async def test_a_runtime_that_dies_and_comes_back(facade: Facade) -> None:
    gate = facade.runtime.script = Gate(stop_after=2)
    sent = chat(stream=True)
    async with facade.http.post(f"{facade.url}/v1/chat/completions", json=sent, headers=AUTH) as response:
        await gate.reached.wait()
        await facade.runtime.kill()
        data = events(await response.text())
    assert json.loads(data[-1])["error"]["type"] == "service_unavailable"
    assert "[DONE]" not in data
    started = time.monotonic()
    for status, body, answer in (await facade.post(chat(stream=True)), await facade.get("/v1/models")):
        assert (status, body["error"]["code"]) == (503, "machine_offline")
        assert int(answer.headers["Retry-After"]) >= 1
    assert time.monotonic() - started < 1
    assert (await facade.get("/health"))[0] == 200
    gate.opened.set()
    await facade.runtime.start()
    deadline = time.monotonic() + 5
    while (await facade.post(chat()))[0] != 200:
        assert time.monotonic() < deadline
    data, _ = await facade.stream(chat())
    assert data[-1] == "[DONE]"


async def test_no_runtime_at_all_is_503_at_once(tmp_path: Path) -> None:
    async with running(make_settings(tmp_path, "127.0.0.1:1")) as (host, port, _), aiohttp.ClientSession() as http:
        started = time.monotonic()
        async with http.post(f"http://{host}:{port}/v1/chat/completions", json=chat(), headers=AUTH) as response:
            assert response.status == 503
        assert time.monotonic() - started < 1


async def _listens(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except ConnectionRefusedError:
        return False
    writer.close()
    return True


async def test_sigterm_lets_streams_finish(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async with FakeRuntime() as runtime, aiohttp.ClientSession() as http:
        gate = runtime.script = Gate(stop_after=2)
        bound: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()
        settings = make_settings(tmp_path, runtime.address)
        server = asyncio.create_task(serve(settings, on_bound=lambda host, port: bound.set_result((host, port))))
        host, port = await bound
        url = f"http://{host}:{port}"
        async with http.post(f"{url}/v1/chat/completions", json=chat(stream=True), headers=AUTH) as response:
            await gate.reached.wait()
            os.kill(os.getpid(), signal.SIGTERM)
            while await _listens(host, port):
                pass
            gate.opened.set()
            assert events(await response.text())[-1] == "[DONE]"
        await asyncio.wait_for(server, 5)
    assert capfd.readouterr().out == ""


async def test_the_drain_is_bounded(tmp_path: Path) -> None:
    async with FakeRuntime() as runtime, aiohttp.ClientSession() as http:
        gate = runtime.script = Gate(stop_after=2)
        stop = asyncio.Event()
        bound: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        settings = make_settings(tmp_path, runtime.address, drain_timeout_s=0.1)
        server = asyncio.create_task(
            serve(settings, stop=stop, on_bound=lambda host, port: bound.set_result(f"http://{host}:{port}"))
        )
        url = f"{await bound}/v1/chat/completions"
        async with http.post(url, json=chat(stream=True), headers=AUTH) as response:
            await gate.reached.wait()
            stop.set()
            data = events(await response.text())
        assert json.loads(data[-1])["error"]["code"] == "runtime_unavailable"
        await asyncio.wait_for(server, 5)
        await runtime.idle()


async def test_a_busy_port_is_an_error(facade: Facade, tmp_path: Path) -> None:
    taken = facade.settings.model_copy(update={"http": f"127.0.0.1:{facade.port}"})
    with pytest.raises(OSError, match="address already in use"):
        await serve(taken)


async def test_a_bad_bootstrap_key_is_an_error(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, "127.0.0.1:1").model_copy(update={"bootstrap_key": "mk_live_short"})
    with pytest.raises(MantlerError, match="bootstrap_key"):
        await serve(settings)
