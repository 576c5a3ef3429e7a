"""What requests take out of their key's limits, whatever becomes of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mantler import messages as m
from mantler.errors import ErrorCode, MantlerError
from tests.facade.conftest import COMPLETIONS, MODEL, Clock, Facade, chat, completion
from tests.fake_runtime import Gate, failing

PER_MINUTE = 100
ONE = m.Started(MODEL, 3), m.Delta("one", (1,))


async def left(facade: Facade, headers: dict[str, str], unit: str = "tokens") -> int:
    """Units that the key may use now. Asks by a request that costs nothing, since the machine refuses it."""
    facade.runtime.script = failing(MantlerError(ErrorCode.QUEUE_FULL, "Full.", retry_after_s=1))
    status, _, response = await facade.post(chat("w"), headers=headers)
    assert status == 429
    return int(response.headers[f"x-ratelimit-remaining-{unit}"])


async def come_to(wanted: int, facade: Facade, headers: dict[str, str]) -> None:
    """Waits until as many tokens are left: what the machine has said is on its way to the facade for a while."""
    async with asyncio.timeout(5):
        while await left(facade, headers) != wanted:
            pass


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("sent", "used"),
    [
        (chat(), 6),
        (chat(max_tokens=2), 5),
        (chat(max_tokens=50), 6),
        (chat(n=3, max_tokens=2), 9),
        (chat("one two three four five six seven eight nine"), 18),
    ],
)
async def test_an_answer_costs_its_usage(
    clock: Clock, facade: Facade, stream: bool, sent: dict[str, Any], used: int
) -> None:
    headers, _ = await facade.new_key(tokens_per_minute=PER_MINUTE)
    if stream:
        await facade.stream_with(sent, headers)
    else:
        await facade.post(sent, headers=headers)
    assert await left(facade, headers) == PER_MINUTE - used


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_each_prompt_of_a_completion_counts_once(clock: Clock, facade: Facade, stream: bool) -> None:
    headers, _ = await facade.new_key(tokens_per_minute=PER_MINUTE)
    sent = completion(["a b", "c d e", "f"], n=2, stream=stream)
    async with facade.http.post(f"{facade.url}{COMPLETIONS}", json=sent, headers=headers) as response:
        assert response.status == 200
        await response.read()
    assert await left(facade, headers) == PER_MINUTE - (2 + 3 + 1) * (1 + 2)


async def test_token_ids_are_estimated_exactly(clock: Clock, facade: Facade) -> None:
    headers, _ = await facade.new_key(tokens_per_minute=PER_MINUTE)
    gates = [Gate(stop_after=1) for _ in range(2)]
    scripts = iter(gates)
    facade.runtime.script = lambda request: next(scripts)(request)
    sent = completion([[1, 2, 3], [4, 5]], max_tokens=10)
    asking = asyncio.create_task(facade.post(sent, COMPLETIONS, headers=headers))
    await asyncio.gather(*(gate.reached.wait() for gate in gates))
    assert await left(facade, headers) == PER_MINUTE - 5 - 2 * 10
    for gate in gates:
        gate.opened.set()
    assert (await asking)[0] == 200
    assert await left(facade, headers) == PER_MINUTE - 5 - 5


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_what_fails_before_it_starts_costs_nothing(clock: Clock, facade: Facade, stream: bool) -> None:
    headers, _ = await facade.new_key(requests_per_minute=5, tokens_per_minute=PER_MINUTE)
    for error in (
        m.context_exceeded(9000, 8192),
        MantlerError(ErrorCode.QUEUE_FULL, "Full.", retry_after_s=1),
        MantlerError(ErrorCode.INTERNAL_ERROR, "Broken."),
    ):
        facade.runtime.script = failing(error)
        await facade.post(chat(max_tokens=50, stream=stream), headers=headers)
    assert await left(facade, headers) == PER_MINUTE
    assert await left(facade, headers, "requests") == 5


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_what_fails_later_costs_what_was_generated(clock: Clock, facade: Facade, stream: bool) -> None:
    headers, _ = await facade.new_key(requests_per_minute=5, tokens_per_minute=PER_MINUTE)
    facade.runtime.script = failing(MantlerError(ErrorCode.DEADLINE_EXCEEDED, "Late."), after=ONE)
    async with facade.http.post(
        f"{facade.url}/v1/chat/completions", json=chat(max_tokens=50, stream=stream), headers=headers
    ) as response:
        assert response.status == (200 if stream else 504)
        await response.read()
    assert await left(facade, headers) == PER_MINUTE - 3 - 1
    assert await left(facade, headers, "requests") == 4


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("stop_after", "used"),
    [(0, 6), (1, 9), (2, 10), (3, 11)],
    ids=["waiting: the prompt, as estimated", "started: the prompt", "one token", "two tokens"],
)
async def test_a_client_that_leaves_pays_for_what_was_done(
    clock: Clock, facade: Facade, stream: bool, stop_after: int, used: int
) -> None:
    headers, _ = await facade.new_key(requests_per_minute=5, tokens_per_minute=PER_MINUTE)
    gate = facade.runtime.script = Gate(stop_after)
    asking = asyncio.create_task(facade.post(chat("w w w w w w w w w", stream=stream), headers=headers))
    await gate.reached.wait()
    await come_to(PER_MINUTE - used, facade, headers)
    asking.cancel()
    await asyncio.wait([asking])
    await asyncio.wait_for(facade.runtime.idle(), 5)
    assert await left(facade, headers) == PER_MINUTE - used
    assert await left(facade, headers, "requests") == 4


async def test_a_client_that_leaves_early_does_not_pay_for_an_output(clock: Clock, facade: Facade) -> None:
    headers, _ = await facade.new_key(tokens_per_minute=PER_MINUTE)
    gate = facade.runtime.script = Gate(stop_after=0)
    asking = asyncio.create_task(facade.post(chat(max_tokens=50), headers=headers))
    await gate.reached.wait()
    assert await left(facade, headers) == PER_MINUTE - 5 - 50
    asking.cancel()
    await asyncio.wait([asking])
    await come_to(PER_MINUTE - 5, facade, headers)


async def test_what_is_beyond_the_reserved_counts_while_it_is_generated(clock: Clock, facade: Facade) -> None:
    headers, _ = await facade.new_key(tokens_per_minute=200)
    gate = facade.runtime.script = Gate(stop_after=1 + 50)
    asking = asyncio.create_task(facade.post(chat("w " * 59 + "w"), headers=headers))
    await gate.reached.wait()
    await come_to(200 - 60 - 50, facade, headers)
    # It flows back while the answer goes on.
    clock.wait(60)
    gate.opened.set()
    assert (await asking)[0] == 200
    assert await left(facade, headers) == 200 - 10


@pytest.mark.parametrize(
    ("path", "what"), [("/v1/tokenize", {"prompt": "a b c"}), ("/v1/detokenize", {"tokens": [1, 2, 3]})]
)
async def test_counting_tokens_costs_a_request_and_no_tokens(
    clock: Clock, facade: Facade, path: str, what: dict[str, Any]
) -> None:
    headers, _ = await facade.new_key(requests_per_minute=5, tokens_per_minute=1)
    for _ in range(3):
        status, _, response = await facade.post({"model": MODEL, **what}, path, headers=headers)
        assert status == 200
        assert "x-ratelimit-limit-tokens" not in response.headers
    assert response.headers["x-ratelimit-remaining-requests"] == "2"
