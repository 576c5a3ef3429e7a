"""Log probabilities come with the text of their tokens."""

import pytest

from mantler.messages import Delta, LogprobsParams
from tests.fake_backend import VOCAB_SIZE, continuation
from tests.runtime_server.engine.running import collect, generation, joined, running_engine, tokens_of


async def test_log_probabilities_come_with_their_tokens() -> None:
    answer = continuation([5], 20)
    async with running_engine() as (engine, _):
        events = await collect(generation(engine, [5], 20, logprobs=LogprobsParams(2), end_ids=frozenset({answer[7]})))
    deltas = [event.body for event in events if isinstance(event.body, Delta)]
    entries = [entry for delta in deltas for entry in delta.logprobs]
    assert [entry.chosen.token_id for entry in entries] == tokens_of(events) == answer[: answer.index(answer[7])]
    assert b"".join(entry.chosen.token_bytes for entry in entries).decode() == joined(events)
    assert all(entry.top[0] == entry.chosen and len(entry.top) == 2 for entry in entries)


async def test_without_being_asked_for_there_are_none() -> None:
    async with running_engine() as (engine, _):
        events = await collect(generation(engine, [5], 20))
    assert not any(event.body.logprobs for event in events if isinstance(event.body, Delta))


@pytest.mark.parametrize("width", [1, 2])
async def test_entries_are_those_of_the_text_that_is_sent(width: int) -> None:
    """With tokens of two characters, a stop string that begins within one leaves its entry, which is longer."""
    token_bytes = [chr(i + 1000).encode() * width for i in range(VOCAB_SIZE)]
    whole = b"".join(token_bytes[token] for token in continuation([5], 20)).decode()
    stop = whole[7:10]
    cut = whole.index(stop)
    async with running_engine() as (engine, _):
        item = generation(engine, [5], 20, stop_strings=[stop], logprobs=LogprobsParams(), token_bytes=token_bytes)
        events = await collect(item)
    deltas = [event.body for event in events if isinstance(event.body, Delta)]
    data = b"".join(entry.chosen.token_bytes for delta in deltas for entry in delta.logprobs).decode()
    assert joined(events) == whole[:cut]
    assert data == whole[: cut + cut % width]
    assert all(len(delta.logprobs) == len(delta.token_ids) for delta in deltas)


async def test_a_character_of_several_tokens_comes_with_all_of_them() -> None:
    character = "\u20ac".encode()
    token_bytes = [character[i % 3 : i % 3 + 1] for i in range(VOCAB_SIZE)]
    async with running_engine() as (engine, _):
        item = generation(engine, [5], 30, logprobs=LogprobsParams(), token_bytes=token_bytes)
        events = await collect(item)
    entries = [entry for event in events if isinstance(event.body, Delta) for entry in event.body.logprobs]
    assert [entry.chosen.token_id for entry in entries] == continuation([5], 30)
    data = b"".join(entry.chosen.token_bytes for entry in entries)
    assert data.decode(errors="replace") == joined(events)
