"""Many streams on the real model."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from mantler.client import RuntimeClient
from mantler.errors import ErrorCode, MantlerError
from mantler.messages import (
    ChatMessage,
    ChatPrompt,
    Delta,
    Finished,
    GenerateRequest,
    Role,
    SamplingParams,
    StopParams,
)
from tests.default_model import DEFAULT_MODEL
from tests.e2e.conftest import Mesh

pytestmark = [pytest.mark.e2e, pytest.mark.model]

SUBJECTS = ["the sea", "bread", "a lighthouse", "chess", "winter", "a small robot", "the moon", "old maps"]
TIMEOUT_S = 110.0


@pytest.fixture
async def client(mesh: Mesh) -> AsyncIterator[RuntimeClient]:
    async with RuntimeClient(mesh.runtime) as opened:
        yield opened


def request(number: int, *, max_tokens: int = 24, sampling: SamplingParams | None = None) -> GenerateRequest:
    """One of 32 different requests, with prompts of different lengths."""
    text = f"Write {number + 2} words about {SUBJECTS[number % len(SUBJECTS)]}. " * (1 + number % 5)
    return GenerateRequest(
        request_id=f"test-{number}",
        model=DEFAULT_MODEL,
        prompt=ChatPrompt((ChatMessage(Role.USER, text),)),
        sampling=sampling or SamplingParams(temperature=0.0),
        stop=StopParams(max_tokens=max_tokens),
    )


async def answer(client: RuntimeClient, asked: GenerateRequest) -> tuple[str, tuple[int, ...]]:
    """Text and token ids of the whole answer."""
    text, finished = "", False
    token_ids: tuple[int, ...] = ()
    async with aclosing(client.generate(asked, TIMEOUT_S)) as events:
        async for event in events:
            if isinstance(event.body, Delta):
                text += event.body.text
                token_ids += event.body.token_ids
            finished = isinstance(event.body, Finished)
    assert finished
    return text, token_ids


async def slots_used(client: RuntimeClient) -> int:
    deployment = (await client.get_model(DEFAULT_MODEL)).deployment
    assert deployment is not None
    return deployment.slots_used + deployment.queue_length


async def test_simultaneous_streams_get_what_each_gets_alone(client: RuntimeClient) -> None:
    """32 greedy streams fill every slot; 8 seeded ones wait and join as others leave."""
    seeded = SamplingParams(temperature=1.0, top_p=0.95, seed=7)
    requests = [request(number, max_tokens=16 + number % 8) for number in range(32)]
    requests += [request(number, max_tokens=16, sampling=seeded) for number in range(8)]
    alone = [await answer(client, item) for item in requests]
    together = await asyncio.gather(*(answer(client, item) for item in requests))
    assert list(together) == alone
    assert len(set(alone)) > 20


async def test_a_different_seed_gives_a_different_answer(client: RuntimeClient) -> None:
    answers = {
        await answer(client, request(0, sampling=SamplingParams(temperature=1.0, seed=seed))) for seed in range(4)
    }
    assert len(answers) > 1


async def test_200_cancels_at_random_moments_leave_every_slot_free(client: RuntimeClient) -> None:
    rng = random.Random(3)
    refusals: set[ErrorCode] = set()

    async def ask_and_leave(number: int) -> None:
        events_until_leaving = rng.randint(0, 12)
        # Even numbers leave after some events, the others when their deadline passes, wherever they are by then.
        timeout_s = TIMEOUT_S if number % 2 else rng.uniform(0.005, 1.5)
        try:
            async with aclosing(client.generate(request(number % 32, max_tokens=200), timeout_s)) as events:
                if events_until_leaving == 0:
                    return
                async for event in events:
                    if event.seq >= events_until_leaving:
                        return
        except MantlerError as error:
            refusals.add(error.code)

    await asyncio.gather(*(ask_and_leave(number) for number in range(200)))
    assert refusals <= {ErrorCode.DEADLINE_EXCEEDED, ErrorCode.QUEUE_FULL}
    async with asyncio.timeout(30):
        while await slots_used(client):
            pass
    before = await answer(client, request(1))
    assert before == await answer(client, request(1))
