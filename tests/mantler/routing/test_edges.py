"""A client of several facades, for which scripted runtimes stand: they ask for no key, and resume as an edge does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import pytest

from mantler import messages as m
from mantler.connect import facades, machines
from mantler.errors import ErrorCode, MantlerError
from mantler.routing.edges import EdgeClient
from mantler.security.errors import SecurityError
from tests.fake_runtime import Body, FakeRuntime, Gate, echo, failing

MODEL = "smollm2:135m"
TEXT = "one two three four five"
SECONDS = 10


def request(text: str = TEXT, n: int = 1) -> m.GenerateRequest:
    return m.GenerateRequest("r", MODEL, m.TextPrompt(text), n=n)


@pytest.fixture
async def first() -> AsyncIterator[FakeRuntime]:
    async with FakeRuntime() as fake:
        yield fake


@pytest.fixture
async def second() -> AsyncIterator[FakeRuntime]:
    async with FakeRuntime() as fake:
        yield fake


@pytest.fixture
async def client(first: FakeRuntime, second: FakeRuntime) -> AsyncIterator[EdgeClient]:
    async with facades([first.address, second.address], "mk_live_x", resume_within_s=SECONDS) as made:
        yield made


async def heard(
    client: EdgeClient, wanted: m.GenerateRequest | None = None, timeout_s: float = SECONDS
) -> list[m.Event]:
    async with aclosing(client.generate(wanted or request(), timeout_s)) as events:
        return [event async for event in events]


def text(events: list[m.Event], choice: int = 0) -> str:
    return "".join(event.body.text for event in events if event.index == choice and isinstance(event.body, m.Delta))


def token_ids(events: list[m.Event]) -> list[int]:
    return [token for event in events if isinstance(event.body, m.Delta) for token in event.body.token_ids]


async def test_the_first_one_answers_while_it_is_there(
    first: FakeRuntime, second: FakeRuntime, client: EdgeClient
) -> None:
    for _ in range(3):
        assert text(await heard(client)) == TEXT
    assert (len(first.requests), len(second.requests)) == (3, 0)


async def test_one_that_is_down_is_left_for_good(first: FakeRuntime, second: FakeRuntime, client: EdgeClient) -> None:
    await first.kill()
    assert text(await heard(client)) == TEXT
    await first.start()
    assert text(await heard(client)) == TEXT
    assert len(second.requests) == 2, "who comes back gets no clients that are well elsewhere"


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("delivered", [0, 1, 3, 5])
async def test_a_stream_goes_on_at_another_one(
    first: FakeRuntime, second: FakeRuntime, client: EdgeClient, delivered: int, n: int
) -> None:
    gate = first.script = Gate(stop_after=n * (1 + delivered))
    asked = asyncio.create_task(heard(client, request(n=n)))
    await gate.reached.wait()
    await first.kill()
    events = await asked
    assert [text(events, choice) for choice in range(n)] == [TEXT] * n
    assert [event.seq for event in events] == list(range(len(events)))
    assert sorted(token_ids(events)) == sorted(list(range(5)) * n)
    (resumed,) = second.requests
    assert resumed.sampling.seed == first.requests[0].sampling.seed is not None


async def test_it_waits_for_a_facade_that_starts_anew(
    first: FakeRuntime, second: FakeRuntime, client: EdgeClient
) -> None:
    gate = first.script = Gate(stop_after=3)
    asked = asyncio.create_task(heard(client))
    await gate.reached.wait()
    await second.kill()
    await first.kill()
    first.script = echo
    await asyncio.sleep(1)  # several looks that find nobody
    assert not asked.done()
    await first.start()
    assert text(await asked) == TEXT


async def test_it_does_not_wait_for_ever(first: FakeRuntime) -> None:
    gate = first.script = Gate(stop_after=3)
    async with facades([first.address], "mk_live_x", resume_within_s=0.3) as client:
        asked = asyncio.create_task(heard(client))
        await gate.reached.wait()
        await first.kill()
        with pytest.raises(MantlerError) as caught:
            await asked
    assert caught.value.code is ErrorCode.MACHINE_OFFLINE


async def test_with_nobody_there_it_fails_at_once(first: FakeRuntime, second: FakeRuntime, client: EdgeClient) -> None:
    await first.kill()
    await second.kill()
    with pytest.raises(MantlerError) as caught:
        await asyncio.wait_for(heard(client, timeout_s=60), SECONDS)
    assert caught.value.code is ErrorCode.MACHINE_OFFLINE


@pytest.mark.parametrize(
    "code",
    [
        ErrorCode.INVALID_API_KEY,
        ErrorCode.MODEL_NOT_FOUND,
        ErrorCode.INVALID_PARAMETER,
        ErrorCode.RATE_LIMIT_EXCEEDED,
        ErrorCode.INTERNAL_ERROR,
    ],
)
async def test_what_is_about_the_request_is_not_tried_elsewhere(
    first: FakeRuntime, second: FakeRuntime, client: EdgeClient, code: ErrorCode
) -> None:
    first.script = failing(MantlerError(code, "No."))
    with pytest.raises(MantlerError) as caught:
        await heard(client)
    assert caught.value.code is code
    assert not second.requests


async def test_a_refusal_after_the_first_token_ends_the_stream(
    first: FakeRuntime, second: FakeRuntime, client: EdgeClient
) -> None:
    first.script = failing(
        MantlerError(ErrorCode.DEADLINE_EXCEEDED, "Late."), (m.Started(MODEL, 1), m.Delta("a", (1,)))
    )
    with pytest.raises(MantlerError) as caught:
        await heard(client)
    assert caught.value.code is ErrorCode.DEADLINE_EXCEEDED
    assert not second.requests


async def test_retries_have_a_budget(first: FakeRuntime, second: FakeRuntime, client: EdgeClient) -> None:
    for fake in (first, second):
        fake.script = failing(MantlerError(ErrorCode.QUEUE_FULL, "Full.", retry_after_s=1.0))
    results = await asyncio.gather(*(heard(client) for _ in range(100)), return_exceptions=True)
    assert all(isinstance(error, MantlerError) and error.code is ErrorCode.QUEUE_FULL for error in results)
    # 10 at first, a fifth of the requests, and one a second.
    assert 100 < len(first.requests) + len(second.requests) <= 100 + 10 + 20 + SECONDS


async def test_another_model_under_the_same_name_does_not_go_on(first: FakeRuntime, second: FakeRuntime) -> None:
    async def other(_: m.GenerateRequest) -> AsyncGenerator[Body, None]:
        yield m.Started(MODEL, 1, fingerprint="fp_other")

    gate = first.script = Gate(stop_after=3)
    second.script = other
    async with facades([first.address, second.address], "mk_live_x", resume_within_s=0.3) as client:
        asked = asyncio.create_task(heard(client))
        await gate.reached.wait()
        await first.kill()
        with pytest.raises(MantlerError) as caught:
            await asked
    assert caught.value.code in (ErrorCode.RUNTIME_UNAVAILABLE, ErrorCode.MACHINE_OFFLINE)


async def test_leaving_frees_the_slot(first: FakeRuntime, client: EdgeClient) -> None:
    first.script = Gate(stop_after=2)
    async with aclosing(client.generate(request(), 60)) as events:
        await anext(events)
    await asyncio.wait_for(first.idle(), SECONDS)


async def test_other_questions_go_to_another_one_too(
    first: FakeRuntime, second: FakeRuntime, client: EdgeClient
) -> None:
    await first.kill()
    assert (await client.count_tokens(MODEL, m.TextPrompt("a b"))).tokens == 2
    assert await client.detokenize(MODEL, m.TokenPrompt((1, 2))) == "t1 t2"
    assert MODEL in [model.id for model in await client.list_models()]
    assert (await client.get_model(MODEL)).id == MODEL
    with pytest.raises(MantlerError) as caught:
        await client.get_model("nope")
    assert caught.value.code is ErrorCode.MODEL_NOT_FOUND


async def test_past_the_facades_to_the_machines(first: FakeRuntime, second: FakeRuntime) -> None:
    gate = Gate(stop_after=3)
    first.script = second.script = gate
    async with machines([first.address, second.address]) as mesh:
        asked = asyncio.create_task(_all(mesh.generate(request(), SECONDS)))
        await gate.reached.wait()
        (busy, idle) = (first, second) if first.active else (second, first)
        idle.script = echo
        await busy.kill()
        assert text(await asked) == TEXT


async def _all(events: AsyncGenerator[m.Event, None]) -> list[m.Event]:
    async with aclosing(events):
        return [event async for event in events]


async def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="addresses must hold one at least"):
        async with facades([], "mk_live_x"):
            pass
    with pytest.raises(ValueError, match="api_key must be printable ASCII"):
        async with facades(["127.0.0.1:1"], "é"):
            pass
    with pytest.raises(ValueError, match="addresses or etcd must be given"):
        async with machines():
            pass
    with pytest.raises(SecurityError):
        async with facades(["203.0.113.1:50050"], "mk_live_x"):
            pass
