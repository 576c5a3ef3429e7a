"""Answers of a running engine: begun, cancelled, refused and failed."""

import asyncio
import random
import threading
from collections.abc import Sequence as Items

import pytest

from mantler.errors import ErrorCode, MantlerError
from mantler.messages import Delta, Finished, FinishReason, Started
from runtime_server.backends.base import Chunk
from tests.fake_backend import continuation
from tests.runtime_server.engine.running import (
    collect,
    generation,
    idle,
    joined,
    running_engine,
    text_of,
    until,
)


async def test_an_answer_is_started_deltas_finished() -> None:
    async with running_engine() as (engine, _):
        events = await collect(generation(engine, [1, 2, 3], 10))
    assert [event.seq for event in events] == list(range(len(events)))
    assert events[0].body == Started("fake", 3, fingerprint="f")
    last = events[-1].body
    assert isinstance(last, Finished)
    assert last.reason is FinishReason.LENGTH
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (3, 10)
    expected = continuation([1, 2, 3], 10)
    assert joined(events) == text_of(expected)
    assert [t for event in events if isinstance(event.body, Delta) for t in event.body.token_ids] == expected


async def test_many_at_once_get_what_each_gets_alone() -> None:
    prompts = [[i, *range(i % 40)] for i in range(50)]
    async with running_engine(max_batch=8) as (engine, _):
        answers = await asyncio.gather(*(collect(generation(engine, prompt, 12)) for prompt in prompts))
        assert engine.running == 0
    for prompt, events in zip(prompts, answers, strict=True):
        assert joined(events) == text_of(continuation(prompt, 12))


async def test_a_repeated_prompt_is_counted_as_cached() -> None:
    async with running_engine() as (engine, _):
        await collect(generation(engine, range(30), 5))
        events = await collect(generation(engine, range(30), 5))
        profile = engine.profile()
    started, last = events[0].body, events[-1].body
    assert isinstance(started, Started)
    assert isinstance(last, Finished)
    assert started.cached_prompt_tokens == last.usage.cached_prompt_tokens == 28
    assert joined(events) == text_of(continuation(range(30), 5))
    assert profile.cached_prompt_tokens == 28
    assert sum(row.prompt_tokens for row in profile.steps) == 32
    assert sum(row.sampled_tokens for row in profile.steps) == 10
    assert sum(row.steps for row in profile.steps) == 10
    assert {(row.max_sequences, row.prompts) for row in profile.steps} == {(1, True), (1, False)}
    assert all(min(row.schedule_s, row.run_s, row.sample_s, row.publish_s) > 0 for row in profile.steps)


async def test_little_memory_makes_answers_later_not_different() -> None:
    prompts = [[i] * 10 for i in range(12)]
    async with running_engine(max_batch=6, blocks=20) as (engine, _):
        answers = await asyncio.gather(*(collect(generation(engine, prompt, 30)) for prompt in prompts))
        assert engine.profile().preemptions > 0
    for prompt, events in zip(prompts, answers, strict=True):
        assert joined(events) == text_of(continuation(prompt, 30))
        assert sum(isinstance(event.body, Started) for event in events) == 1
        last = events[-1].body
        assert isinstance(last, Finished)
        assert (last.usage.completion_tokens, last.usage.cached_prompt_tokens) == (30, 0)


async def test_requests_join_a_running_batch() -> None:
    both_there = threading.Event()

    def before_step(chunks: Items[Chunk]) -> None:
        if chunks[0].start == 5:
            assert both_there.wait(timeout=30)

    async with running_engine(before_step=before_step) as (engine, backend):
        long = asyncio.create_task(collect(generation(engine, [1], 50)))
        await until(lambda: len(backend.steps) == 5)
        short = asyncio.create_task(collect(generation(engine, [2], 5)))
        await until(lambda: engine.waiting == 1)
        both_there.set()
        assert joined(await short) == text_of(continuation([2], 5))
        assert joined(await long) == text_of(continuation([1], 50))
        assert any(len(chunks) == 2 for chunks in backend.steps)


async def test_a_stop_string_across_tokens_ends_the_answer() -> None:
    answer = text_of(continuation([5], 20))
    stop = answer[6:9]
    cut = answer.index(stop)
    async with running_engine() as (engine, _):
        events = await collect(generation(engine, [5], 20, stop_strings=[stop, "never there"]))
        await idle(engine)
    last = events[-1].body
    assert isinstance(last, Finished)
    assert (last.reason, last.stop_string) == (FinishReason.STOP, stop)
    assert last.usage.completion_tokens == cut + 3
    assert joined(events) == answer[:cut]


async def test_text_held_back_for_a_stop_string_is_flushed_at_the_end() -> None:
    answer = text_of(continuation([5], 20))
    async with running_engine() as (engine, _):
        events = await collect(generation(engine, [5], 20, stop_strings=[answer[-4:] + "more"]))
    assert joined(events) == answer


async def test_an_end_token_is_reported_and_not_sent() -> None:
    answer = continuation([5], 20)
    end = answer[7]
    length = answer.index(end)
    async with running_engine() as (engine, _):
        events = await collect(generation(engine, [5], 20, end_ids=frozenset({end})))
    last = events[-1].body
    assert isinstance(last, Finished)
    assert (last.reason, last.stop_token_id) == (FinishReason.STOP, end)
    assert joined(events) == text_of(answer[:length])


async def test_no_end_token_before_min_tokens() -> None:
    answer = continuation([5], 20)
    async with running_engine() as (engine, _):
        events = await collect(generation(engine, [5], 20, end_ids=frozenset({answer[3]}), min_tokens=10))
    last = events[-1].body
    assert isinstance(last, Finished)
    assert last.usage.completion_tokens > 10


async def test_a_full_queue_refuses_at_once() -> None:
    gate = threading.Event()

    def wait_for_gate(chunks: Items[Chunk]) -> None:
        assert gate.wait(timeout=30)

    async with running_engine(max_batch=1, max_queue=0, before_step=wait_for_gate) as (engine, _):
        first = asyncio.create_task(collect(generation(engine, [1], 3)))
        await until(lambda: engine.running == 1)
        with pytest.raises(MantlerError) as refused:
            await collect(generation(engine, [2], 3))
        assert refused.value.code is ErrorCode.QUEUE_FULL
        assert refused.value.retry_after_s is not None
        gate.set()
        assert joined(await first) == text_of(continuation([1], 3))


@pytest.mark.parametrize("phase", ["queued", "prefilling", "streaming"])
async def test_cancelling_frees_the_place_in_every_phase(phase: str) -> None:
    at_step, go_on = threading.Semaphore(0), threading.Semaphore(0)

    def before_step(chunks: Items[Chunk]) -> None:
        at_step.release()
        assert go_on.acquire(timeout=30)

    async with running_engine(max_batch=1, before_step=before_step) as (engine, backend):
        occupant = asyncio.create_task(collect(generation(engine, [1] * 40, 100)))
        await asyncio.to_thread(at_step.acquire)
        victim = occupant
        if phase == "queued":
            victim = asyncio.create_task(collect(generation(engine, [2], 5)))
            await until(lambda: engine.waiting == 1)
        if phase == "streaming":
            for _ in range(5):
                go_on.release()
                await asyncio.to_thread(at_step.acquire)
        victim.cancel()
        with pytest.raises(asyncio.CancelledError):
            await victim
        steps = len(backend.steps)
        if phase == "queued":
            assert engine.waiting == 0
            occupant.cancel()
            with pytest.raises(asyncio.CancelledError):
                await occupant
        go_on.release()  # the step that was running; no other may follow
        await idle(engine)
        assert len(backend.steps) == steps + 1
        go_on.release(100)
        assert joined(await collect(generation(engine, [3], 3))) == text_of(continuation([3], 3))


async def test_random_cancels_leave_nothing_behind() -> None:
    rng = random.Random(11)
    async with running_engine(max_batch=4, max_queue=300) as (engine, _):
        tasks = [
            asyncio.create_task(collect(generation(engine, [i] * rng.randint(1, 60), rng.randint(1, 60))))
            for i in range(200)
        ]
        for task in rng.sample(tasks, 150):
            for _ in range(rng.randint(0, 20)):
                await asyncio.sleep(0)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await idle(engine)
        assert joined(await collect(generation(engine, [9], 9))) == text_of(continuation([9], 9))


async def test_a_step_that_raises_fails_the_requests_and_the_engine() -> None:
    def break_at_second(chunks: Items[Chunk]) -> None:
        if any(chunk.start for chunk in chunks):
            raise RuntimeError("secret detail")

    async with running_engine(before_step=break_at_second) as (engine, backend):
        with pytest.raises(MantlerError) as failed:
            await collect(generation(engine, [1], 5))
        assert failed.value.code is ErrorCode.INTERNAL_ERROR
        assert "secret" not in failed.value.message
        assert engine.failed
        assert await asyncio.to_thread(backend.closed.wait, 30)
        with pytest.raises(MantlerError) as refused:
            await collect(generation(engine, [1], 5))
        assert refused.value.code is ErrorCode.RUNTIME_UNAVAILABLE


async def test_closing_fails_what_runs_and_frees_the_backend() -> None:
    at_step, go_on = threading.Semaphore(0), threading.Event()

    def before_step(chunks: Items[Chunk]) -> None:
        at_step.release()
        assert go_on.wait(timeout=30)

    async with running_engine(before_step=before_step) as (engine, backend):
        task = asyncio.create_task(collect(generation(engine, [1], 150)))
        await asyncio.to_thread(at_step.acquire)
        closing = asyncio.create_task(engine.close())
        await asyncio.sleep(0)  # close() has told the engine's thread to stop, and waits for it
        go_on.set()
        await closing
        with pytest.raises(MantlerError) as failed:
            await task
        assert failed.value.code is ErrorCode.RUNTIME_UNAVAILABLE
        assert len(backend.steps) == 1
        assert backend.closed.is_set()
