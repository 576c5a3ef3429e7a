"""Constrained outputs through the engine, from a backend whose logits are noise."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

import numpy as np
import pytest
from numpy.typing import NDArray

from mantler.errors import ErrorCode, MantlerError, invalid
from mantler.messages import (
    ChoiceConstraint,
    Constraint,
    Delta,
    Finished,
    FinishReason,
    GrammarConstraint,
    JsonObjectConstraint,
    JsonSchemaConstraint,
    LogprobsParams,
    RegexConstraint,
    SamplingParams,
)
from runtime_server.backends.base import Chunk
from runtime_server.constraints.compiler import Compiler
from runtime_server.constraints.matcher import Matcher
from runtime_server.engine.blocks import BlockPool
from runtime_server.engine.engine import Engine
from runtime_server.engine.generation import Generation
from runtime_server.engine.logprobs import rank
from runtime_server.engine.output_text import OutputText
from runtime_server.engine.scheduler import Scheduler
from runtime_server.engine.sequence import Sequence as EngineSequence
from runtime_server.models.tokenizer import Tokenizer
from tests.fake_backend import VOCAB_SIZE, FakeBackend
from tests.runtime_server.constraints.conftest import EOS
from tests.schemas import REFUSED, is_valid, schema

Answer = tuple[str, FinishReason]
NOISE = SamplingParams(temperature=1.0, seed=5)


class NoisyBackend(FakeBackend):
    """Its logits are random, and a function of all tokens before, as those of the backend it is made from."""

    def run(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        logits = super().run(chunks)
        for row in logits:
            row[:] = np.random.default_rng(int(row.argmax())).normal(size=VOCAB_SIZE)
        return logits


@asynccontextmanager
async def running_engine(*, blocks: int = 2000, max_batch: int = 8) -> AsyncIterator[Engine]:
    backend = NoisyBackend(blocks=blocks)
    pool = BlockPool(backend.blocks, backend.block_tokens)
    scheduler = Scheduler(pool, max_batch=max_batch, max_queue=300, prefill_chunk=16)
    engine = Engine(backend, scheduler, name="noise", loop=asyncio.get_running_loop())
    engine.start()
    try:
        yield engine
    finally:
        await engine.close()


def generation(engine: Engine, sequence: EngineSequence, tokenizer: Tokenizer) -> Generation:
    table = tokenizer.token_bytes
    return Generation(
        engine, [sequence], model="noise", fingerprint="f", token_bytes=table, output=lambda _: OutputText(table)
    )


async def answer(
    engine: Engine,
    tokenizer: Tokenizer,
    matcher: Matcher | None,
    *,
    sampling: SamplingParams = NOISE,
    max_tokens: int = 300,
    min_tokens: int = 0,
    end_ids: frozenset[int] = frozenset({EOS}),
    prompt: Sequence[int] = (1, 2, 3),
) -> Answer:
    sequence = EngineSequence(
        prompt_ids=prompt,
        sampling=sampling,
        seed=sampling.seed or 0,
        max_tokens=max_tokens,
        end_ids=end_ids,
        min_tokens=min_tokens,
        matcher=matcher,
    )
    made = generation(engine, sequence, tokenizer)
    async with aclosing(made.events()) as events:
        bodies = [event.body async for event in events]
    last = bodies[-1]
    assert isinstance(last, Finished)
    return "".join(body.text for body in bodies if isinstance(body, Delta)), last.reason


async def constrained(engine: Engine, tokenizer: Tokenizer, compiler: Compiler, constraint: Constraint) -> Answer:
    return await answer(engine, tokenizer, await compiler.matcher(constraint, ends_early=True))


async def test_documents_of_200_schemas_are_valid_or_the_schema_is_refused(
    tokenizer: Tokenizer, compiler: Compiler
) -> None:
    async def one(number: int) -> str:
        made = schema(number)
        try:
            text, reason = await constrained(engine, tokenizer, compiler, JsonSchemaConstraint(json.dumps(made)))
        except MantlerError as error:
            if error.code is not ErrorCode.INVALID_PARAMETER:
                raise
            return "refused"
        if reason is FinishReason.LENGTH:
            return "cut"
        assert is_valid(made, text), (number, made, text)
        return "valid"

    async with running_engine() as engine:
        places = asyncio.Semaphore(8)

        async def bounded(number: int) -> str:
            async with places:
                return await one(number)

        found = await asyncio.gather(*map(bounded, range(200)))
    assert found.count("valid") >= 130
    assert all((found[n] == "refused") == (schema(n) in REFUSED) for n in range(200))


SAMPLINGS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.0, seed=1),
    SamplingParams(temperature=2.0, top_p=0.9, seed=2),
    SamplingParams(temperature=1.0, top_k=3, seed=3),
    SamplingParams(temperature=0.7, min_p=0.2, top_p=0.5, seed=4),
]


@pytest.mark.parametrize("sampling", SAMPLINGS)
async def test_every_way_of_drawing_keeps_to_the_mask(
    tokenizer: Tokenizer, compiler: Compiler, sampling: SamplingParams
) -> None:
    async with running_engine() as engine:
        for _ in range(5):
            matcher = await compiler.matcher(RegexConstraint("[a-f]{3,9}-[0-9]{4}"), ends_early=True)
            text, reason = await answer(engine, tokenizer, matcher, sampling=sampling)
            assert (re.fullmatch("[a-f]{3,9}-[0-9]{4}", text) is not None, reason) == (True, FinishReason.STOP)


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        (ChoiceConstraint(("yes", "no", 'a "quoted"\nline', "grün \\ 日本")), 'yes|no|a "quoted"\nline|grün \\\\ 日本'),
        (GrammarConstraint('start: "<" /[0-9]{1,3}/ ">" ("," start)?'), "<[0-9]{1,3}>(,<[0-9]{1,3}>)*"),
        (RegexConstraint("(ab|c)d"), "(ab|c)d"),
    ],
)
async def test_the_other_kinds(tokenizer: Tokenizer, compiler: Compiler, constraint: Constraint, pattern: str) -> None:
    async with running_engine() as engine:
        text, reason = await constrained(engine, tokenizer, compiler, constraint)
    assert reason is FinishReason.STOP
    assert re.fullmatch(pattern, text)


async def test_any_object_has_no_white_space_but_single_spaces(tokenizer: Tokenizer, compiler: Compiler) -> None:
    matcher = await compiler.matcher(JsonObjectConstraint(), ends_early=True)
    matcher.expect()
    matcher.make()
    starts = {data for token_id, data in enumerate(tokenizer.token_bytes) if matcher.mask().allows(token_id)}
    assert starts == {b"{", b'{"'}


async def test_neighbours_and_preemption_change_nothing(tokenizer: Tokenizer, compiler: Compiler) -> None:
    asked = RegexConstraint("[a-z ]{40}[0-9]{10}")

    async def one(engine: Engine, number: int) -> Answer:
        matcher = await compiler.matcher(asked, ends_early=True)
        return await answer(engine, tokenizer, matcher, prompt=[number] * 9, max_tokens=60)

    async with running_engine() as engine:
        alone = [await one(engine, number) for number in range(8)]
    async with running_engine(blocks=24) as engine:
        together = await asyncio.gather(*(one(engine, number) for number in range(8)))
        assert engine.profile().preemptions > 0
    assert together == alone


async def test_log_probabilities_are_those_before_the_mask(tokenizer: Tokenizer, compiler: Compiler) -> None:
    async with running_engine() as engine:
        sequence = EngineSequence(
            prompt_ids=[1, 2, 3],
            sampling=NOISE,
            seed=5,
            max_tokens=60,
            end_ids=frozenset({EOS}),
            matcher=await compiler.matcher(RegexConstraint("[a-f]{30}"), ends_early=True),
            logprobs=LogprobsParams(3),
        )
        made = generation(engine, sequence, tokenizer)
        async with aclosing(made.events()) as events:
            deltas = [event.body async for event in events if isinstance(event.body, Delta)]
    entries = [entry for delta in deltas for entry in delta.logprobs]
    assert re.fullmatch("[a-f]{30}", "".join(delta.text for delta in deltas))
    # The same logits without a mask, from a backend that is fed the same tokens.
    said, backend = [1, 2, 3], NoisyBackend(blocks=50)
    for entry in entries:
        ranking = rank(backend.run([Chunk(range(50), 0, said, True)])[0], entry.chosen.token_id, 3)
        assert entry.chosen.logprob == ranking.chosen
        assert tuple((other.token_id, other.logprob) for other in entry.top) == tuple(
            zip(ranking.top_ids, ranking.top, strict=True)
        )
        said.append(entry.chosen.token_id)
    listed = {other.token_bytes for entry in entries for other in entry.top}
    assert any(re.fullmatch(b"[a-f]+", data) is None for data in listed)


async def test_a_complete_output_ends_before_min_tokens(tokenizer: Tokenizer, compiler: Compiler) -> None:
    async with running_engine() as engine:
        fixed = await compiler.matcher(RegexConstraint("[a-z]{3}"), ends_early=True)
        text, reason = await answer(engine, tokenizer, fixed, min_tokens=20)
        assert (len(text), reason) == (3, FinishReason.STOP)
        free = await compiler.matcher(RegexConstraint("[a-z]{1,100}"), ends_early=True)
        text, _ = await answer(engine, tokenizer, free, min_tokens=40)
        assert len(text) >= 40


async def test_an_end_that_is_ignored_comes_where_nothing_else_may(tokenizer: Tokenizer, compiler: Compiler) -> None:
    async with running_engine() as engine:
        fixed = await compiler.matcher(RegexConstraint("[a-z]{3,30}"), ends_early=False)
        text, reason = await answer(engine, tokenizer, fixed, end_ids=frozenset())
        assert (len(text), reason) == (30, FinishReason.STOP)
        endless = await compiler.matcher(RegexConstraint("[xyz]+"), ends_early=False)
        text, reason = await answer(engine, tokenizer, endless, end_ids=frozenset(), max_tokens=50)
        assert (len(text), reason) == (50, FinishReason.LENGTH)


async def test_the_same_constraint_is_compiled_once(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    await compiler.matcher(RegexConstraint("a+"), ends_early=True)

    def fail(text: str) -> None:
        raise AssertionError(text)

    monkeypatch.setattr(compiler, "_state", fail)
    matcher = await compiler.matcher(RegexConstraint("a+"), ends_early=True)
    matcher.expect()
    matcher.make()
    assert matcher.mask().allows(ord("a"))


async def test_a_grammar_that_gives_up_fails_its_own_request_only(
    tokenizer: Tokenizer, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = await compiler.matcher(RegexConstraint("[a-z]{50}"), ends_early=True)
    advance, taken = broken.advance, 0

    def give_up(token_id: int) -> None:
        nonlocal taken
        taken += 1
        if taken == 5:
            monkeypatch.setattr(broken, "_find_allowed", refuse)
        advance(token_id)

    def refuse() -> None:
        raise invalid("regex", "costs too much")

    monkeypatch.setattr(broken, "advance", give_up)
    async with running_engine() as engine:
        fine = await compiler.matcher(RegexConstraint("[a-z]{60}"), ends_early=True)
        failed, served, free = await asyncio.gather(
            answer(engine, tokenizer, broken),
            answer(engine, tokenizer, fine),
            answer(engine, tokenizer, None, max_tokens=60, end_ids=frozenset()),
            return_exceptions=True,
        )
        assert isinstance(failed, MantlerError)
        assert failed.code is ErrorCode.INVALID_PARAMETER
        assert isinstance(served, tuple)
        assert (len(served[0]), served[1]) == (60, FinishReason.STOP)
        assert isinstance(free, tuple)
        assert (engine.running, engine.failed) == (0, False)
