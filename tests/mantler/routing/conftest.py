"""A real etcd for a test, and a mesh around it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.etcd_server import EtcdServer, why_not
from tests.fake_runtime import FakeRuntime
from tests.mantler.routing.etcd_mesh import Mesh


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EtcdServer]:
    if reason := why_not():
        pytest.skip(reason)
    server = EtcdServer(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def mesh(server: EtcdServer) -> AsyncIterator[Mesh]:
    async with AsyncExitStack() as stack:
        yield Mesh(server, stack)


@pytest.fixture
async def runtime() -> AsyncIterator[FakeRuntime]:
    async with FakeRuntime() as runtime:
        yield runtime
