"""Machines in network namespaces whose cables are cut and mended while streams run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.conftest import fresh_home
from tests.e2e.mesh_processes import (
    AUTH,
    FacadeProcess,
    RuntimeProcess,
    Traffic,
    check_whole,
    machine_token,
    references,
)
from tests.e2e.namespaces import Host, why_not

pytestmark = [pytest.mark.e2e, pytest.mark.model]
PORT = 50051


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(headers=AUTH, timeout=aiohttp.ClientTimeout(total=120)) as session:
        yield session


@pytest.fixture
def ends() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


async def test_no_stream_breaks_when_cables_are_cut(
    model_home: Path, tmp_path: Path, http: aiohttp.ClientSession, ends: ExitStack
) -> None:
    if reason := why_not():
        pytest.skip(reason)
    facade = FacadeProcess(tmp_path / "facade", host="0.0.0.0", extra=("--insecure",))
    token = await machine_token(facade.home)
    facade.start()
    ends.callback(facade.stop)
    home = fresh_home(tmp_path / "machine", model_home)
    hosts = [ends.enter_context(Host(number)) for number in (1, 2)]
    for host, reach in zip(hosts, ("dial", "tunnel"), strict=True):
        # The second one has no open port: only the connection that it dials itself.
        listening = f"{host.address}:{PORT}" if reach == "dial" else f"127.0.0.1:{PORT}"
        joins = f"{host.gateway}:{facade.grpc_port}"
        runtime = RuntimeProcess(reach, home, [facade], token, ("--insecure",), host.within, listening, joins)
        runtime.start()
        ends.callback(runtime.stop)
    expected = await references(http, facade)
    traffic = Traffic(http, facade, 8)
    await traffic.flows()
    for host, name in zip(hosts, ("dial", "tunnel"), strict=True):
        host.cut()
        await traffic.flows()
        host.mend()
        await traffic.flows()
        assert f"a stream of {name} goes on elsewhere" in facade.text
    check_whole(await traffic.stop(), expected)
