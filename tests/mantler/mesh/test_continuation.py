"""An answer that is cut off again and again comes as if it had not been."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mantler.errors import ErrorCode, MantlerError
from mantler.mesh.continuation import Continuation
from mantler.messages import (
    Delta,
    Event,
    Finished,
    FinishReason,
    GenerateRequest,
    SamplingParams,
    Started,
    StopParams,
    TextPrompt,
    ToolCallDelta,
    Usage,
    join_calls,
)


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([(2, Delta("a", (1,)))], "choice 2 of 2"),
        ([(0, Delta("a", (1, 2, 3))), (0, Delta("b", (4,)))], "4 tokens where 3 were asked for at most"),
        ([(1, Delta("", (), tool_calls=(ToolCallDelta(0, "{"),)))], "tool call 0, which has not begun"),
        ([(0, Finished(FinishReason.LENGTH, Usage(9, 4)))], "a usage of 4 tokens where 3"),
    ],
)
def test_what_does_not_fit_the_request_is_a_fault_of_the_machine(
    events: list[tuple[int, Delta | Finished]], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    request = GenerateRequest("r", "m", TextPrompt("p"), n=2, stop=StopParams(max_tokens=3))
    continuation = Continuation(request)

    def said() -> None:
        for seq, (index, body) in enumerate(events):
            continuation.take(Event(seq, index, body))

    with pytest.raises(MantlerError) as caught:
        said()
    assert caught.value.code is ErrorCode.INTERNAL_ERROR
    assert words in caplog.text


TEXT = "Well, é 漢字! "
REASONING = "Hm. "
CALLS = ('{"city": "Ulm"}', "{}")


def answer(held: int) -> list[Delta]:
    """Reasoning, text and two calls, a token for each character; text is ``held`` back by some tokens."""
    deltas = [Delta("", (i,), reasoning=char) for i, char in enumerate(REASONING)]
    padded = [*([""] * held), *TEXT]
    deltas += [Delta(padded[i], (100 + i,)) for i in range(len(TEXT))]
    deltas.append(Delta("".join(padded[len(TEXT) :])))
    for index, arguments in enumerate(CALLS):
        deltas.append(Delta("", (200,), tool_calls=(ToolCallDelta(index, "", f"call_{index}", "f"),)))
        deltas += [Delta("", (201 + i,), tool_calls=(ToolCallDelta(index, char),)) for i, char in enumerate(arguments)]
    return deltas


def joined(deltas: list[Delta]) -> Delta:
    return Delta(
        "".join(delta.text for delta in deltas),
        tuple(token_id for delta in deltas for token_id in delta.token_ids),
        (),
        join_calls(part for delta in deltas for part in delta.tool_calls),
        "".join(delta.reasoning for delta in deltas),
    )


def machine(request: GenerateRequest, whole: list[Delta]) -> list[Event]:
    """What a runtime sends of ``whole``, which every choice says."""
    events: list[Event] = []

    def add(index: int, body: Started | Delta | Finished) -> None:
        events.append(Event(len(events), index, body))

    for index in range(request.n):
        known = () if request.resume is None else request.resume.delivered[index]
        if request.resume is not None and index in request.resume.finished:
            continue
        add(index, Started("m", 1, fingerprint="f"))
        place = next(i for i in range(len(whole) + 1) if joined(whole[:i]).token_ids == tuple(known))
        if place:
            add(index, replace(joined(whole[:place]), token_ids=()))
        for delta in whole[place:]:
            add(index, delta)
        add(index, Finished(FinishReason.STOP, Usage(1, 9)))
    return events


@given(st.integers(0, 5), st.integers(1, 3), st.lists(st.integers(0, 200), max_size=8))
def test_cuts_are_not_seen(held: int, n: int, cuts: list[int]) -> None:
    whole = answer(held)
    continuation = Continuation(GenerateRequest("r", "m", TextPrompt("x"), SamplingParams(seed=1), n=n))
    seen: list[Event] = []
    for cut in [*cuts, 10_000]:
        if continuation.over:
            break
        for event in machine(continuation.next_request(), whole)[:cut]:
            news = continuation.take(event)
            if news is not None:
                seen.append(news)
    assert continuation.over
    assert [event.seq for event in seen] == list(range(len(seen)))
    for index in range(n):
        bodies = [event.body for event in seen if event.index == index]
        assert isinstance(bodies[0], Started)
        assert isinstance(bodies[-1], Finished)
        deltas = [body for body in bodies if isinstance(body, Delta)]
        assert len(deltas) == len(bodies) - 2
        assert joined(deltas) == joined(whole)
    assert continuation.tokens == n * len(joined(whole).token_ids)


def test_nothing_is_copied_while_no_machine_is_lost() -> None:
    request = GenerateRequest("r", "m", TextPrompt("x"), n=2)
    continuation = Continuation(request)
    for event in machine(request, answer(1)):
        assert continuation.take(event) is event
