"""One choice's tokens as text with log probabilities, in the default model's vocabulary."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mantler.messages import Delta, Finished, FinishReason, LogprobsParams, SamplingParams
from runtime_server.engine.choice import Choice
from runtime_server.engine.logprobs import Ranking
from runtime_server.engine.output_text import OutputText
from runtime_server.engine.sequence import Sequence
from runtime_server.models.tokenizer import Tokenizer
from tests.conftest import model_folder

pytestmark = pytest.mark.model

SCRIPTS = "aé ßжщ中文語한국어हिन्दी🙂👩‍👧‍👦\U0001f1e9\U0001f1ea\n0"


@pytest.fixture(scope="module")
def tokenizer(model_home: Path) -> Tokenizer:
    return Tokenizer.load(model_folder(model_home))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(st.characters(exclude_categories=["Cs"])) | st.text(st.sampled_from(SCRIPTS), max_size=40),
    stop=st.text(st.sampled_from(SCRIPTS), min_size=1, max_size=3) | st.none(),
    sizes=st.lists(st.integers(1, 5)),
)
def test_log_probabilities_concatenate_to_the_text(
    tokenizer: Tokenizer, text: str, stop: str | None, sizes: list[int]
) -> None:
    # The vocabulary lacks some bytes, of control characters and of planes that are nearly empty.
    spelled = {data[0] for data in tokenizer.token_bytes if len(data) == 1}
    whole = "".join(character for character in text if spelled.issuperset(character.encode())) or "a"
    token_ids = tokenizer.encode_exactly(whole.encode())
    deltas = deltas_of(tokenizer, token_ids, [stop] if stop else [], sizes)
    sent = "".join(delta.text for delta in deltas)
    ended = stop is not None and stop in whole
    assert sent == (whole if stop is None else whole.partition(stop)[0])
    entries, so_far = b"", ""
    for delta in deltas:
        entries += b"".join(entry.chosen.token_bytes for entry in delta.logprobs)
        so_far += delta.text
        # Never ahead of the text: a token goes out with the last character that it has a part of.
        assert ended or so_far.encode().startswith(entries)
    # A token that the stop string begins in is the last one, and goes out whole.
    assert entries.startswith(sent.encode())
    assert ended or entries == sent.encode()


def deltas_of(tokenizer: Tokenizer, token_ids: list[int], stops: list[str], sizes: list[int]) -> list[Delta]:
    """What a choice gives out where the consumer takes tokens in pieces of ``sizes``, then one by one."""
    sequence = Sequence(
        prompt_ids=[1],
        sampling=SamplingParams(temperature=0),
        seed=0,
        max_tokens=len(token_ids),
        logprobs=LogprobsParams(),
    )
    choice = Choice(
        sequence,
        sequence,
        asyncio.Event(),
        model="m",
        fingerprint="f",
        token_bytes=tokenizer.token_bytes,
        output=OutputText(tokenizer.token_bytes, stops),
    )
    bodies: list[object] = []
    pieces = iter(sizes)
    left = next(pieces, 1)
    for place, token_id in enumerate(token_ids, start=1):
        last = place == len(token_ids)
        choice.token(token_id, FinishReason.LENGTH if last else None, Ranking(-0.5))
        left -= 1
        if left == 0 or last:
            bodies += choice.take()
            left = next(pieces, 1)
        if choice.finished:
            break
    assert isinstance(bodies[-1], Finished)
    return [body for body in bodies if isinstance(body, Delta)]
