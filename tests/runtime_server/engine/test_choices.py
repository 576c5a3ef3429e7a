"""Several choices of one request."""

from contextlib import aclosing

import pytest

from mantler.errors import ErrorCode, MantlerError
from mantler.messages import Event, Finished, FinishReason, SamplingParams, Started
from tests.runtime_server.engine.running import collect, generation, idle, joined, running_engine, tokens_of

HOT = SamplingParams(temperature=2.0)
"""So hot that the fake model's certainty of its next token does not decide."""


def of_choice(events: list[Event], index: int) -> list[Event]:
    return [event for event in events if event.index == index]


@pytest.mark.parametrize("max_batch", [1, 3, 8])
async def test_each_choice_is_what_it_is_alone(max_batch: int) -> None:
    async with running_engine(max_batch=max_batch, blocks=40) as (engine, _):
        events = await collect(generation(engine, range(30), 12, sampling=HOT, choices=range(6)))
        alone = [await collect(generation(engine, range(30), 12, sampling=HOT, choices=[i])) for i in range(6)]
        await idle(engine)
    assert [event.seq for event in events] == list(range(len(events)))
    for index in range(6):
        mine = of_choice(events, index)
        assert isinstance(mine[0].body, Started)
        assert isinstance(mine[-1].body, Finished)
        assert tokens_of(mine) == tokens_of(alone[index])
        assert (mine[-1].body.usage.completion_tokens, mine[-1].body.usage.cached_prompt_tokens) == (12, 0)
    assert len({tuple(tokens_of(answer)) for answer in alone}) == 6


async def test_a_prompt_is_computed_once_for_all_choices() -> None:
    async with running_engine(max_batch=8) as (engine, backend):
        await collect(generation(engine, range(30), 3, choices=range(5)))
    computed = [len(chunk.token_ids) for chunks in backend.steps for chunk in chunks if len(chunk.token_ids) > 1]
    # The last block of each choice, of two tokens, is its own.
    assert sum(computed) == 28 + 5 * 2


async def test_choices_are_refused_as_a_whole() -> None:
    async with running_engine(max_batch=2, max_queue=3) as (engine, _):
        with pytest.raises(MantlerError) as refused:
            await collect(generation(engine, [1], 3, choices=range(6)))
        assert refused.value.code is ErrorCode.QUEUE_FULL
        assert (engine.running, engine.waiting) == (0, 0)
        assert len(await collect(generation(engine, [1], 3, choices=range(5)))) >= 15


async def test_leaving_cancels_every_choice() -> None:
    async with running_engine(max_batch=2) as (engine, _):
        async with aclosing(generation(engine, [1], 500, choices=range(5)).events()) as events:
            async for _ in events:
                break
        await idle(engine)


async def test_a_choice_that_a_stop_string_ends_frees_its_place() -> None:
    async with running_engine(max_batch=1) as (engine, _):
        alone = [joined(await collect(generation(engine, [5], 60, sampling=HOT, choices=[i]))) for i in (0, 1)]
        stop = next(c for c in alone[0] if c not in alone[1])
        events = await collect(generation(engine, [5], 60, sampling=HOT, choices=[0, 1], stop_strings=[stop]))
        await idle(engine)
    ends = [event.body for event in events if isinstance(event.body, Finished)]
    assert [(end.reason, end.stop_string) for end in ends] == [(FinishReason.STOP, stop), (FinishReason.LENGTH, None)]
    assert [joined(of_choice(events, 0)), joined(of_choice(events, 1))] == [alone[0][: alone[0].index(stop)], alone[1]]
