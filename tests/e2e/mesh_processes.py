"""Facades and runtimes as processes that form a mesh, and clients that stream through it."""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import ge
from pathlib import Path

import aiohttp

from mantler.cli.drill.traffic import REQUESTS, body, listen
from mantler.cli.drill.verdict import Heard
from mantler.tenancy.tokens import TokenStore
from tests.default_model import DEFAULT_MODEL
from tests.e2e.processes import KEY, Process, free_port

AUTH = {"Authorization": f"Bearer {KEY}"}
MAX_TOKENS = 40


async def machine_token(home: Path) -> str:
    """A new one in the database of ``home``."""
    async with await TokenStore.open(f"sqlite+aiosqlite:///{home / 'mantler.db'}") as tokens:
        token, _ = await tokens.create("a machine")
    return token


@dataclass
class FacadeProcess:
    """A facade that can be restarted where it was."""

    home: Path
    host: str = "127.0.0.1"
    extra: tuple[str, ...] = ()
    http_port: int = field(default_factory=free_port)
    grpc_port: int = field(default_factory=free_port)
    process: Process | None = None

    @property
    def grpc(self) -> str:
        return f"{self.host}:{self.grpc_port}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def text(self) -> str:
        """What it has printed since it was started."""
        assert self.process is not None
        return self.process.text

    def start(self) -> None:
        addresses = ["--http", f"127.0.0.1:{self.http_port}", "--grpc", self.grpc, "--runtime", "127.0.0.1:1"]
        self.process = Process(["facade", *addresses, *self.extra], self.home, {"MANTLER_BOOTSTRAP_KEY": KEY})
        self.process.wait_for("serving ")

    def kill(self) -> None:
        assert self.process is not None
        self.process.signal(signal.SIGKILL)
        self.process.exit_code()

    def stop(self) -> int:
        assert self.process is not None
        return self.process.stop()


@dataclass
class RuntimeProcess:
    """A runtime that joins facades, and can be broken."""

    name: str
    home: Path
    facades: Sequence[FacadeProcess]
    token: str
    extra: tuple[str, ...] = ()
    within: tuple[str, ...] = ()
    address: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")
    joins: str = ""
    """Where the facade is, as seen from ``within``."""
    process: Process | None = None

    def start(self) -> None:
        arguments = ["runtime", "--runtime", self.address, "--machine-id", self.name, "--threads", "1"]
        arguments += ["--kv-memory-mb", "200", *self.extra]
        for facade in self.facades:
            arguments += ["--mesh", self.joins or facade.grpc]
        self.process = Process(arguments, self.home, {"MANTLER_MACHINE_TOKEN": self.token}, self.within)
        for _ in range(max(1, len(self.facades))):
            self.process.wait_for("in the mesh of |announced in etcd")

    def kill(self) -> None:
        assert self.process is not None
        self.process.signal(signal.SIGKILL)
        self.process.exit_code()

    def stop(self) -> int:
        assert self.process is not None
        return self.process.stop()


async def status_becomes(http: aiohttp.ClientSession, facade: FacadeProcess, status: int) -> float:
    """Seconds until the list of models has this status."""
    began_s = time.monotonic()
    async with asyncio.timeout(30):
        for _ in itertools.count():
            async with http.get(f"{facade.url}/v1/models", headers=AUTH) as response:
                listed = [model["id"] for model in (await response.json()).get("data", [])]
                if response.status == status and (status != 200 or listed == [DEFAULT_MODEL]):
                    break
            await asyncio.sleep(0.05)
    return time.monotonic() - began_s


class Traffic:
    """Clients that ask one facade, each one stream after the other, until the test stops them."""

    def __init__(self, http: aiohttp.ClientSession, facade: FacadeProcess, streams: int) -> None:
        self.heard: list[Heard] = []
        self._http = http
        self._url = f"{facade.url}/v1/chat/completions"
        self._stopped = False
        self._changed = asyncio.Condition()
        self._ended = [0] * streams
        self._tasks = [asyncio.create_task(self._ask(client)) for client in range(streams)]

    async def flows(self) -> None:
        """Waits until each client has heard to its end a stream that began from now on."""
        wanted = [count + 2 for count in self._ended]
        async with self._changed:
            await self._changed.wait_for(lambda: all(map(ge, self._ended, wanted)))

    async def stop(self) -> list[Heard]:
        """Everything that was heard. What runs is heard to its end."""
        self._stopped = True
        await asyncio.gather(*self._tasks)
        return self.heard

    async def _ask(self, client: int) -> None:
        for number in itertools.count(client):
            if self._stopped:
                return
            heard = await listen(
                self._http, self._url, number % REQUESTS, body(number % REQUESTS, DEFAULT_MODEL, MAX_TOKENS)
            )
            async with self._changed:
                self.heard.append(heard)
                self._ended[client] += heard.error is None
                self._changed.notify_all()
            if heard.error is not None:
                await asyncio.sleep(0.1)


async def references(http: aiohttp.ClientSession, facade: FacadeProcess) -> dict[int, list[str]]:
    """The tokens of each request in an undisturbed run."""
    url = f"{facade.url}/v1/chat/completions"
    heard = await asyncio.gather(
        *(listen(http, url, number, body(number, DEFAULT_MODEL, MAX_TOKENS)) for number in range(REQUESTS))
    )
    assert [each.error for each in heard] == [None] * REQUESTS
    return {each.request: each.tokens for each in heard}


def check_whole(heard: list[Heard], expected: dict[int, list[str]]) -> None:
    """Every stream ended well, with the tokens of an undisturbed run."""
    assert heard
    assert Counter(each.error for each in heard) == {None: len(heard)}
    for each in heard:
        assert each.tokens == expected[each.request]


def check_clean(heard: list[Heard], expected: dict[int, list[str]]) -> None:
    """Streams are whole, or their clients saw before they began that the facade was away."""
    away = {
        "ClientConnectorError",
        "ClientOSError",
        "ServerDisconnectedError",
        "machine_offline",
        "runtime_unavailable",
    }
    failed = [each for each in heard if each.error is not None]
    assert {each.error for each in failed} <= away
    assert not any(each.tokens for each in failed)
    check_whole([each for each in heard if each.error is None], expected)
