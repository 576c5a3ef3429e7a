"""``mantler up`` as a whole: start, kill, recover, stop."""

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.default_model import DEFAULT_MODEL
from tests.e2e.conftest import up_arguments
from tests.e2e.processes import KEY, children, free_port, running

pytestmark = [pytest.mark.e2e, pytest.mark.model]

MESSAGES = [{"role": "user", "content": "Count from one to one hundred."}]


def chat(**fields: object) -> dict[str, Any]:
    return {"json": {"model": DEFAULT_MODEL, "messages": MESSAGES, "temperature": 0, **fields}}


def data_events(lines: list[str]) -> list[str]:
    return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]


async def models(http: str, key: str) -> list[str]:
    """The model ids that ``key`` sees."""
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession() as client, client.get(f"http://{http}/v1/models", headers=headers) as response:
        assert response.status == 200
        return [model["id"] for model in (await response.json())["data"]]


@pytest.fixture
def addresses() -> tuple[str, str]:
    return f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"


async def test_a_stream_goes_on_after_its_runtime_was_killed(
    home_with_model: Callable[[], Path], addresses: tuple[str, str]
) -> None:
    http, runtime = addresses
    with running(up_arguments(http, runtime), home_with_model(), {"MANTLER_BOOTSTRAP_KEY": KEY}) as process:
        process.wait_for("Ctrl-C stops it")
        url, headers = f"http://{http}/v1/chat/completions", {"Authorization": f"Bearer {KEY}"}
        asked = chat(stream=True, max_tokens=400, ignore_eos=True, temperature=1, seed=3)
        texts = []
        async with aiohttp.ClientSession(headers=headers) as client:
            for kill in (False, True):
                lines: list[str] = []
                async with client.post(url, **asked) as response:
                    async for raw in response.content:
                        lines.append(raw.decode().strip())
                        if kill and lines[-1] and len(data_events(lines)) == 5:
                            os.kill(children(process.pid)["runtime"], signal.SIGKILL)
                *chunks, done = data_events(lines)
                assert done == "[DONE]"
                deltas = [json.loads(chunk)["choices"][0]["delta"] for chunk in chunks]
                texts.append("".join(delta.get("content", "") for delta in deltas))
        assert texts[0] == texts[1]


async def test_a_runtime_killed_in_a_stream_is_an_error_event_then_503_then_recovers(
    home_with_model: Callable[[], Path], addresses: tuple[str, str]
) -> None:
    http, runtime = addresses
    environment = {"MANTLER_BOOTSTRAP_KEY": KEY, "MANTLER_RESUME_WITHIN_S": "0"}
    with running(up_arguments(http, runtime), home_with_model(), environment) as process:
        process.wait_for("Ctrl-C stops it")
        url, headers = f"http://{http}/v1/chat/completions", {"Authorization": f"Bearer {KEY}"}
        async with aiohttp.ClientSession(headers=headers) as client:
            async with client.post(url, **chat(stream=True, max_tokens=1500, ignore_eos=True)) as response:
                assert response.status == 200
                lines = []
                async for raw in response.content:
                    lines.append(raw.decode().strip())
                    if lines[-1] and len(data_events(lines)) == 5:
                        os.kill(children(process.pid)["runtime"], signal.SIGKILL)
            events = data_events(lines)
            assert "[DONE]" not in events
            assert json.loads(events[-1])["error"]["type"] == "service_unavailable"

            asked_s = time.monotonic()
            async with client.post(url, **chat(max_tokens=4)) as response:
                assert response.status == 503, await response.text()
                assert int(response.headers["Retry-After"]) >= 1
                assert (await response.json())["error"]["type"] == "service_unavailable"
            assert time.monotonic() - asked_s < 1

            process.wait_for(r"runtime .*(again|restart)")
            process.wait_for(r"loaded")
            # The facade connects again within its backoff, a second at most; until then it answers 503.
            statuses = []
            async with asyncio.timeout(10):
                while 200 not in statuses:
                    async with client.post(url, **chat(max_tokens=4)) as response:
                        statuses.append(response.status)
            assert set(statuses) <= {503, 200}


async def test_the_first_start_makes_a_key_and_the_second_does_not(
    home_with_model: Callable[[], Path], addresses: tuple[str, str]
) -> None:
    home = home_with_model()
    with running(up_arguments(*addresses), home) as process:
        process.wait_for("Ctrl-C stops it")
        key = re.search(r"mk_live_[\w-]{24,}", process.text)
        assert key is not None
        assert await models(addresses[0], key[0]) == [DEFAULT_MODEL]
    with running(up_arguments(*addresses), home) as process:
        took_s = float(process.wait_for(r"Mantler serves .*, after ([\d.]+) s")[1])
        process.wait_for("Ctrl-C stops it")
        assert "mk_live_" not in process.text
        assert await models(addresses[0], key[0]) == [DEFAULT_MODEL]
    print(f"the second start took {took_s} s")  # noqa: T201 - shown with -s


def test_sigint_stops_everything(home_with_model: Callable[[], Path], addresses: tuple[str, str]) -> None:
    with running(up_arguments(*addresses), home_with_model()) as process:
        process.wait_for("Ctrl-C stops it")
        pids = children(process.pid)
        assert set(pids) == {"runtime", "facade"}
        process.signal(signal.SIGINT)
        assert process.exit_code() == 0
        assert not [pid for pid in pids.values() if Path(f"/proc/{pid}").exists()]
