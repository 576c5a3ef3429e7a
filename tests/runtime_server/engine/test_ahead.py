"""Steps that are launched before anybody looked at the one before them."""

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mantler.messages import Delta, LogprobsParams, SamplingParams, TokenLogprob
from runtime_server.backends.base import Flight
from runtime_server.engine.blocks import BlockPool
from runtime_server.engine.draw import draw
from runtime_server.engine.scheduler import Scheduler, Step
from runtime_server.engine.sequence import Sequence
from tests.fake_backend import AheadBackend, continuation
from tests.runtime_server.engine.machine import GREEDY
from tests.runtime_server.engine.running import collect, generation, joined, running_engine, text_of

prompts = st.builds(
    lambda start, length: [*range(start, start + length)], st.sampled_from([0, 0, 50]), st.integers(1, 20)
)
requests = st.tuples(prompts, st.integers(1, 15), st.integers(0, 60))


@given(
    st.lists(requests, min_size=1, max_size=8),
    st.integers(1, 4),
    st.sampled_from([14, 18, 100]),
    st.randoms(use_true_random=False),
)
@settings(deadline=None)
def test_everybody_gets_the_tokens_they_get_alone(
    asked: list[tuple[list[int], int, int]], max_batch: int, blocks: int, chance: random.Random
) -> None:
    """Whoever ends, arrives or leaves while a step runs that was launched without knowing of it."""
    pool = BlockPool(blocks, 4)
    scheduler = Scheduler(pool, max_batch=max_batch, max_queue=100, prefill_chunk=8)
    backend = AheadBackend(blocks=blocks)
    items = []
    for prompt, tokens, place in asked:
        # Some answers end with a token of theirs.
        answer = continuation(prompt, tokens)
        end_ids = frozenset(answer[place : place + 1])
        items.append(Sequence(prompt_ids=prompt, sampling=GREEDY, seed=0, max_tokens=tokens, end_ids=end_ids))
    waiting, cancelled = list(items), set[int]()

    def launch(step: Step) -> tuple[Step, Flight]:
        return step, backend.launch(step.chunks)

    def something_happens() -> None:
        while waiting and chance.random() < 0.3:
            scheduler.add(waiting.pop())
        if chance.random() < 0.05:
            victim = chance.choice(items)
            if victim not in waiting:
                cancelled.add(id(victim))
                scheduler.cancel(victim)

    while waiting or not scheduler.idle:
        something_happens()
        step = scheduler.schedule()
        launched = launch(step) if step.chunks else None
        while launched is not None:
            something_happens()
            ahead = scheduler.schedule_ahead(launched[0])
            following = None if ahead is None else launch(ahead)
            something_happens()
            step, flight = launched
            sampled = [item for item, chunk in zip(step.sequences, step.chunks, strict=True) if chunk.wants_logits]
            drawn, _ = draw(flight.output(), [item.sampling_row() for item in sampled])
            scheduler.commit(step, drawn)
            launched = following
    assert pool.available == pool.blocks
    assert all(pool.holders(block) == 0 for block in range(pool.blocks))
    for item in items:
        answer = continuation(item.token_ids[: item.prompt_tokens].tolist(), item.max_tokens)
        ended = next((i + 1 for i, token in enumerate(answer) if token in item.end_ids), len(answer))
        if id(item) in cancelled:
            assert item.output_ids == answer[: item.output_tokens]
        else:
            assert item.output_ids == answer[:ended]


async def test_an_engine_decodes_ahead() -> None:
    backend = AheadBackend(blocks=200)
    async with running_engine(backend=backend) as (engine, _):
        prompts = [[i, *range(i % 9)] for i in range(12)]
        answers = await asyncio.gather(*(collect(generation(engine, prompt, 30)) for prompt in prompts))
    for prompt, events in zip(prompts, answers, strict=True):
        assert joined(events) == text_of(continuation(prompt, 30))
    # A request alone that ends by its length: nothing is in vain, and all but prompt and first token go ahead.
    alone = AheadBackend(blocks=200)
    async with running_engine(backend=alone) as (engine, _):
        await collect(generation(engine, [1, 2, 3], 30))
    assert (len(alone.steps), alone.ahead_steps) == (30, 29)
    assert backend.ahead_steps > len(backend.steps) // 2


async def test_nothing_goes_ahead_of_what_is_not_known() -> None:
    """Drawn tokens, biases and the ban of an end are decided by looking at the logits."""
    for sampling, min_tokens in (
        (SamplingParams(temperature=0.7, top_k=2), 0),
        (SamplingParams(temperature=0.0, logit_bias=((5, 1.0),)), 0),
        (GREEDY, 20),
    ):
        backend = AheadBackend(blocks=200)
        async with running_engine(backend=backend) as (engine, _):
            end_ids = frozenset([299]) if min_tokens else frozenset[int]()
            item = generation(engine, [1, 2, 3], 20, sampling=sampling, min_tokens=min_tokens, end_ids=end_ids)
            await collect(item)
        assert backend.ahead_steps == 0


async def test_log_probabilities_are_those_of_all_logits() -> None:
    async def entries(backend: AheadBackend | None) -> list[TokenLogprob]:
        async with running_engine(backend=backend) as (engine, _):
            events = await collect(generation(engine, [1, 2, 3], 12, logprobs=LogprobsParams(top=3)))
        return [entry for event in events if isinstance(event.body, Delta) for entry in event.body.logprobs]

    few, everything = await entries(AheadBackend(blocks=200)), await entries(None)
    assert len(few) == 12
    for entry, expected in zip(few, everything, strict=True):
        assert [c.token_id for c in (entry.chosen, *entry.top)] == [
            c.token_id for c in (expected.chosen, *expected.top)
        ]
        assert entry.chosen.logprob == pytest.approx(expected.chosen.logprob, abs=1e-4)
