"""How long a runtime goes on with a request whose client has left, over HTTP, in each phase of the request.

It starts a real `mantler up` with two slots, disconnects at one moment of each kind and asks the runtime every
millisecond whether the request is gone. A step that runs when the client leaves is finished first: the mean length of
steps stands beside the times.

Examples:
  python -m bench.cancellation
  python -m bench.cancellation --rounds 50 --json
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import weights
from bench.client import Endpoint, body
from bench.figures import quantile
from bench.options import positive
from bench.peers import this_mantler
from bench.process import StartError, child, free_port, wait_until_served
from bench.report import markdown, number
from bench.stream import Request
from mantler.client import RuntimeClient
from mantler.config import split_address
from mantler.messages import Deployment

SLOTS = 2
POLL_S = 0.001
WITHIN_S = 10.0
LONG_WORDS = 6000
"""One token each, nearly: a prompt that takes more than a second."""
HEADS = ("phase", "times", "p50", "p99", "most", "a step")


@dataclass(frozen=True, slots=True)
class Found:
    """Of one phase."""

    phase: str
    idle_ms: tuple[float, ...]
    """From the client's disconnect until the runtime knows nothing of the request any more."""
    step_ms: float
    """Mean length of the steps meanwhile, those of other requests included."""


class Server:
    """A `mantler up` that is asked, and looked at."""

    def __init__(self, endpoint: Endpoint, runtime: RuntimeClient) -> None:
        self._endpoint = endpoint
        self._runtime = runtime
        self._address = endpoint.url.removeprefix("http://").removesuffix("/v1")

    @asynccontextmanager
    async def asked(self, request: Request) -> AsyncIterator[asyncio.StreamReader]:
        """A request on a connection of its own, which ends with the block."""
        sent = json.dumps(body(request, self._endpoint.model)).encode()
        reader, writer = await asyncio.open_connection(*split_address(self._address))
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self._address}\r\nContent-Type: application/json\r\n"
        head += f"Authorization: Bearer {self._endpoint.key}\r\nContent-Length: {len(sent)}\r\n\r\n"
        writer.write(head.encode() + sent)
        try:
            yield reader
        finally:
            writer.close()

    async def deployment(self) -> Deployment:
        """How busy the runtime is."""
        deployment = (await self._runtime.get_model(self._endpoint.model)).deployment
        if deployment is None:
            raise StartError("The runtime has unloaded its model.")
        return deployment

    async def until(self, holds: Callable[[Deployment], bool]) -> None:
        """Returns as soon as ``holds``."""
        async with asyncio.timeout(WITHIN_S):
            while not holds(await self.deployment()):  # noqa: ASYNC110 - what is waited for is another process's
                await asyncio.sleep(POLL_S)

    async def steps(self) -> tuple[int, float]:
        """Steps since the start, and the seconds that they took."""
        rows = (await self.deployment()).profile.steps
        return sum(row.steps for row in rows), sum(row.total_s for row in rows)


Leave = Callable[[Server], Awaitable[float]]
"""Brings a request into a phase and disconnects. Returns the milliseconds until it was gone."""


async def queued(server: Server) -> float:
    """Every slot is taken by others."""
    async with AsyncExitStack() as others:
        for _ in range(SLOTS):
            await _started(await others.enter_async_context(server.asked(_request("Count.", 4000))))
        async with server.asked(_request("Count.", 10)):
            await server.until(lambda found: found.queue_length == 1)
        took_ms = await _gone_ms(server, lambda found: found.queue_length == 0)
    await server.until(_idle)
    return took_ms


async def prefilling(server: Server) -> float:
    """A long prompt is being computed."""
    async with server.asked(_request("word " * LONG_WORDS, 10)) as reader:
        await server.until(lambda found: found.slots_used == 1)
        await asyncio.sleep(0.1)  # into the prompt, whose steps take a second and more
        if reader.at_eof() or (await server.deployment()).slots_used != 1:
            raise StartError("The prompt was over too soon to be cancelled.")
    return await _gone_ms(server, _idle)


async def decoding(server: Server) -> float:
    """Tokens come and are read."""
    async with server.asked(_request("Count.", 4000)) as reader:
        await _started(reader)
    return await _gone_ms(server, _idle)


async def unread(server: Server) -> float:
    """Tokens come, and the client has stopped reading."""
    async with server.asked(_request("Count.", 4000)) as reader:
        await _started(reader)
        await asyncio.sleep(0.5)
    return await _gone_ms(server, _idle)


PHASES: tuple[tuple[str, Leave], ...] = (
    ("queued", queued),
    ("prompt being computed", prefilling),
    ("tokens being read", decoding),
    ("tokens that nobody reads", unread),
)


def _request(text: str, tokens: int) -> Request:
    # No two have a beginning in common, which would come out of the cache.
    return Request(secrets.token_hex(8), text, tokens)


def _idle(found: Deployment) -> bool:
    return found.slots_used == 0 and found.queue_length == 0


async def _started(reader: asyncio.StreamReader) -> None:
    async with asyncio.timeout(WITHIN_S):
        while b'"content":"' not in (await reader.readline()).replace(b": ", b":").replace(b'"content":""', b""):
            if reader.at_eof():
                raise StartError("The server answered no tokens.")


async def _gone_ms(server: Server, gone: Callable[[Deployment], bool]) -> float:
    left_s = time.perf_counter()
    await server.until(gone)
    return (time.perf_counter() - left_s) * 1000


async def measured(endpoint: Endpoint, address: str, rounds: int) -> list[Found]:
    """All phases, one after the other."""
    found = []
    async with RuntimeClient(address) as runtime:
        server = Server(endpoint, runtime)
        await decoding(server)
        for name, leave in PHASES:
            steps, seconds = await server.steps()
            times = [await leave(server) for _ in range(rounds)]
            steps_after, seconds_after = await server.steps()
            found.append(Found(name, tuple(times), (seconds_after - seconds) / max(steps_after - steps, 1) * 1000))
    return found


def table(found: Iterable[Found]) -> str:
    """For people."""
    lines = []
    for one in found:
        times = (quantile(one.idle_ms, 0.5), quantile(one.idle_ms, 0.99), max(one.idle_ms))
        shown = [number(value, 1, " ms") for value in (*times, one.step_ms)]
        lines.append([one.phase, str(len(one.idle_ms)), *shown])
    return markdown(HEADS, lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="cancellation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=positive, default=30, help="disconnects of each kind (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="every time, for scripts")
    given = parser.parse_args()
    models = weights.converted(this_mantler(), weights.CACHE / "bench" / "home")
    key, runtime, http = "mk_live_" + secrets.token_urlsafe(32), f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    endpoint = Endpoint(f"http://{http}/v1", key, weights.MODEL)
    command = [*this_mantler(), "up", "--http", http, "--runtime", runtime, "--grpc", "127.0.0.1:0"]
    command += ["--model", weights.MODEL, "--max-batch", str(SLOTS)]
    with tempfile.TemporaryDirectory() as home, contextlib.ExitStack() as stack:
        Path(home, "models").symlink_to(models)
        log = Path(home, "log")
        try:
            process = stack.enter_context(child(command, log, env=weights.environment(Path(home), key)))
            wait_until_served(process, log, f"{endpoint.url}/models", endpoint.headers, holds=weights.MODEL)
            found = asyncio.run(measured(endpoint, runtime, given.rounds))
        except (StartError, subprocess.SubprocessError, TimeoutError) as error:
            sys.exit(f"{error or 'The runtime did not become idle in time.'}")
    print(json.dumps([asdict(one) for one in found], indent=1) if given.json else table(found))


if __name__ == "__main__":
    main()
