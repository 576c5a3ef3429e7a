"""An engine that runs on a fake backend, for its tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from collections.abc import Sequence as Items
from contextlib import aclosing, asynccontextmanager

from mantler.messages import Delta, Event, LogprobsParams, SamplingParams
from runtime_server.backends.base import Backend, Chunk
from runtime_server.engine.blocks import BlockPool
from runtime_server.engine.engine import Engine
from runtime_server.engine.generation import Generation
from runtime_server.engine.output_text import OutputText
from runtime_server.engine.scheduler import Scheduler
from runtime_server.engine.sequence import Sequence
from tests.fake_backend import VOCAB_SIZE, FakeBackend

GREEDY = SamplingParams(temperature=0.0)
# Token 42 is "B" and so on; one token is one character.
TOKEN_BYTES = [chr(i + 24).encode() for i in range(VOCAB_SIZE)]


def text_of(tokens: Items[int]) -> str:
    return b"".join(TOKEN_BYTES[token] for token in tokens).decode()


@asynccontextmanager
async def running_engine(
    *,
    max_batch: int = 4,
    max_queue: int = 64,
    blocks: int = 200,
    before_step: Callable[[Items[Chunk]], None] = lambda chunks: None,
    backend: Backend | None = None,
    prefill_chunk: int = 16,
) -> AsyncIterator[tuple[Engine, FakeBackend]]:
    fake = FakeBackend(blocks=blocks, max_step_tokens=4 * 16, before_step=before_step)
    used = backend or fake
    pool = BlockPool(used.blocks, used.block_tokens)
    scheduler = Scheduler(pool, max_batch=max_batch, max_queue=max_queue, prefill_chunk=prefill_chunk)
    engine = Engine(used, scheduler, name="fake", loop=asyncio.get_running_loop())
    engine.start()
    try:
        yield engine, fake
    finally:
        await engine.close()


def generation(
    engine: Engine,
    prompt: Items[int],
    max_tokens: int,
    *,
    stop_strings: Items[str] = (),
    end_ids: frozenset[int] = frozenset(),
    min_tokens: int = 0,
    sampling: SamplingParams = GREEDY,
    choices: Items[int] = (0,),
    logprobs: LogprobsParams | None = None,
    token_bytes: Items[bytes] = TOKEN_BYTES,
) -> Generation:
    sequences = [
        Sequence(
            prompt_ids=prompt,
            sampling=sampling,
            seed=7,
            max_tokens=max_tokens,
            end_ids=end_ids,
            min_tokens=min_tokens,
            choice=choice,
            logprobs=logprobs,
        )
        for choice in choices
    ]
    return Generation(
        engine,
        sequences,
        model="fake",
        fingerprint="f",
        token_bytes=token_bytes,
        output=lambda _: OutputText(token_bytes, stop_strings, min_tokens=min_tokens),
    )


async def collect(item: Generation) -> list[Event]:
    async with aclosing(item.events()) as events:
        return [event async for event in events]


def joined(events: list[Event]) -> str:
    return "".join(event.body.text for event in events if isinstance(event.body, Delta))


async def until(condition: Callable[[], bool]) -> None:
    """Lets the event loop and the engine's thread run until ``condition`` holds, bounded by the test's timeout."""
    while not condition():  # noqa: ASYNC110 - the engine's counters have no event
        await asyncio.sleep(0)


async def idle(engine: Engine) -> None:
    """Waits until nothing waits and nothing runs."""
    await until(lambda: not engine.running and not engine.waiting)


def tokens_of(events: list[Event]) -> list[int]:
    return [token for event in events if isinstance(event.body, Delta) for token in event.body.token_ids]
