"""A mesh of real processes: machines join, die, come back, and are restarted one after the other under load."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, aclosing
from pathlib import Path

import aiohttp
import pytest

from mantler import connect
from mantler.messages import Delta, GenerateRequest, SamplingParams, StopParams, TextPrompt
from mantler.routing.edges import EdgeClient
from tests.default_model import DEFAULT_MODEL
from tests.e2e.conftest import fresh_home
from tests.e2e.mesh_processes import (
    AUTH,
    FacadeProcess,
    RuntimeProcess,
    Traffic,
    check_clean,
    check_whole,
    machine_token,
    references,
    status_becomes,
)
from tests.e2e.processes import KEY
from tests.etcd_server import EtcdServer, why_not

LOG = logging.getLogger(__name__)

pytestmark = [pytest.mark.e2e, pytest.mark.model]


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(headers=AUTH, timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


@pytest.fixture
def ends() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("reach", ["dial", "tunnel"])
async def test_a_machine_that_dies_is_gone_and_used_again(
    reach: str, model_home: Path, tmp_path: Path, http: aiohttp.ClientSession, ends: ExitStack
) -> None:
    facade = FacadeProcess(tmp_path / "facade")
    token = await machine_token(facade.home)
    facade.start()
    ends.callback(facade.stop)
    home = fresh_home(tmp_path / "machine", model_home)
    runtime = RuntimeProcess("gpu1", home, [facade], token, ("--reach", reach))
    runtime.start()
    ends.callback(lambda: runtime.stop())
    await status_becomes(http, facade, 200)
    expected = await references(http, facade)
    runtime.kill()
    LOG.info("%s: offline after %.2f s", reach, await status_becomes(http, facade, 503))
    runtime.start()
    LOG.info("%s: used %.2f s after it had joined", reach, await status_becomes(http, facade, 200))
    traffic = Traffic(http, facade, 4)
    await traffic.flows()
    assert await asyncio.to_thread(facade.stop) == 0
    await asyncio.to_thread(facade.start)
    LOG.info("%s: used %.2f s after its facade was back", reach, await status_becomes(http, facade, 200))
    check_clean(await traffic.stop(), expected)
    assert await references(http, facade) == expected


async def test_a_rolling_restart_breaks_no_stream(
    model_home: Path, tmp_path: Path, http: aiohttp.ClientSession, ends: ExitStack
) -> None:
    first, second = (FacadeProcess(tmp_path / name) for name in ("first", "second"))
    for facade in (first, second):
        facade.home.mkdir()
    token = await machine_token(first.home)
    (second.home / "mantler.db").symlink_to(first.home / "mantler.db")
    for facade in (first, second):
        facade.start()
        ends.callback(facade.stop)
    home = fresh_home(tmp_path / "machine", model_home)
    runtimes = [RuntimeProcess(name, home, [first, second], token) for name in ("gpu1", "gpu2")]
    for runtime in runtimes:
        runtime.start()
        ends.callback(runtime.stop)
    expected = await references(http, first)
    traffic = [Traffic(http, facade, 4) for facade in (first, second)]
    for runtime in runtimes:
        await traffic[1].flows()
        assert await asyncio.to_thread(runtime.stop) == 0
        await asyncio.to_thread(runtime.start)
    await traffic[0].flows()
    assert await asyncio.to_thread(first.stop) == 0
    await asyncio.to_thread(first.start)
    await traffic[0].flows()
    of_first, of_second = [await each.stop() for each in traffic]
    check_whole(of_second, expected)
    check_clean(of_first, expected)


async def test_grpc_clients_outlive_their_facade(
    model_home: Path, tmp_path: Path, http: aiohttp.ClientSession, ends: ExitStack
) -> None:
    first, second = (FacadeProcess(tmp_path / name) for name in ("first", "second"))
    for facade in (first, second):
        facade.home.mkdir()
    token = await machine_token(first.home)
    (second.home / "mantler.db").symlink_to(first.home / "mantler.db")
    for facade in (first, second):
        facade.start()
        ends.callback(facade.stop)
    runtime = RuntimeProcess("gpu1", fresh_home(tmp_path / "machine", model_home), [first, second], token)
    runtime.start()
    ends.callback(runtime.stop)
    await status_becomes(http, first, 200)
    await status_becomes(http, second, 200)

    def wanted(number: int) -> GenerateRequest:
        sampling = SamplingParams(temperature=number % 2, seed=number)
        prompt = TextPrompt(f"The lighthouse number {number} stands")
        return GenerateRequest(f"r{number}", DEFAULT_MODEL, prompt, sampling=sampling, stop=StopParams(max_tokens=80))

    async with connect.facades([second.grpc], KEY) as undisturbed:
        expected = [await heard(undisturbed, wanted(number)) for number in range(6)]
    flowing = asyncio.Event()
    async with connect.facades([first.grpc, second.grpc], KEY) as client:
        asked = [asyncio.create_task(heard(client, wanted(number), flowing)) for number in range(6)]
        await flowing.wait()
        first.kill()
        assert await asyncio.gather(*asked) == expected


async def heard(
    client: EdgeClient, request: GenerateRequest, flowing: asyncio.Event | None = None
) -> tuple[str, list[int]]:
    """Text and tokens of an answer; ``flowing`` is set after the tenth token."""
    text, token_ids = "", list[int]()
    async with aclosing(client.generate(request, 60)) as events:
        async for event in events:
            if isinstance(event.body, Delta):
                text += event.body.text
                token_ids += event.body.token_ids
            if flowing is not None and len(token_ids) >= 10:
                flowing.set()
    return text, token_ids


async def test_facades_share_a_machine_in_etcd(
    model_home: Path, tmp_path: Path, http: aiohttp.ClientSession, ends: ExitStack
) -> None:
    if reason := why_not():
        pytest.skip(reason)
    etcd = EtcdServer(tmp_path)
    etcd.start()
    ends.callback(etcd.stop)
    facades = [FacadeProcess(tmp_path / name, extra=("--etcd", etcd.url)) for name in ("first", "second")]
    for facade in facades:
        facade.start()
        ends.callback(facade.stop)
    home = fresh_home(tmp_path / "machine", model_home)
    runtime = RuntimeProcess("gpu1", home, [], "mt_live_" + "x" * 43, ("--etcd", etcd.url))
    runtime.start()
    ends.callback(lambda: runtime.stop())
    for facade in facades:
        await status_becomes(http, facade, 200)
    assert await references(http, facades[0]) == await references(http, facades[1])
    runtime.kill()
    for facade in facades:
        LOG.info("etcd: offline after %.2f s", await status_becomes(http, facade, 503))
    runtime.start()
    for facade in facades:
        LOG.info("etcd: used %.2f s after its start", await status_becomes(http, facade, 200))
