"""The events of an answer as protobuf messages and back."""

from __future__ import annotations

from typing import assert_never

from mantler import messages as m
from mantler.v1 import generation_pb2
from mantler.wire.tools import call_delta_from_proto, call_delta_to_proto

_REASONS = {
    m.FinishReason.STOP: generation_pb2.FINISH_REASON_STOP,
    m.FinishReason.LENGTH: generation_pb2.FINISH_REASON_LENGTH,
    m.FinishReason.TOOL_CALLS: generation_pb2.FINISH_REASON_TOOL_CALLS,
    m.FinishReason.CONTENT_FILTER: generation_pb2.FINISH_REASON_CONTENT_FILTER,
}
_REASONS_BACK = {number: reason for reason, number in _REASONS.items()}


def event_to_proto(event: m.Event) -> generation_pb2.GenerateResponse:
    """An event for the wire."""
    message = generation_pb2.GenerateResponse(seq=event.seq, index=event.index)
    body = event.body
    match body:
        case m.Delta():
            message.delta.text = body.text
            message.delta.token_ids.extend(body.token_ids)
            if body.reasoning:
                message.delta.reasoning = body.reasoning
            if body.tool_calls:
                message.delta.tool_calls.extend(call_delta_to_proto(part) for part in body.tool_calls)
            if body.logprobs:
                message.delta.logprobs.extend(_logprob_to_proto(entry) for entry in body.logprobs)
        case m.Started():
            message.started.model = body.model
            message.started.prompt_tokens = body.prompt_tokens
            message.started.cached_prompt_tokens = body.cached_prompt_tokens
            message.started.fingerprint = body.fingerprint
        case m.Finished():
            message.finished.reason = _REASONS[body.reason]
            message.finished.usage.prompt_tokens = body.usage.prompt_tokens
            message.finished.usage.cached_prompt_tokens = body.usage.cached_prompt_tokens
            message.finished.usage.completion_tokens = body.usage.completion_tokens
            message.finished.usage.reasoning_tokens = body.usage.reasoning_tokens
            if body.stop_string is not None:
                message.finished.stop_string = body.stop_string
            elif body.stop_token_id is not None:
                message.finished.stop_token_id = body.stop_token_id
        case _:
            assert_never(body)
    return message


def event_from_proto(message: generation_pb2.GenerateResponse) -> m.Event:
    """An event off the wire. Raises ``ValueError`` for one that this version does not know."""
    return m.Event(seq=message.seq, index=message.index, body=_event_body(message))


def _event_body(message: generation_pb2.GenerateResponse) -> m.Started | m.Delta | m.Finished:
    match message.WhichOneof("event"):
        case "delta":
            return _delta(message.delta)
        case "started":
            started = message.started
            return m.Started(
                model=started.model,
                prompt_tokens=started.prompt_tokens,
                cached_prompt_tokens=started.cached_prompt_tokens,
                fingerprint=started.fingerprint,
            )
        case "finished":
            finished = message.finished
            return m.Finished(
                reason=_REASONS_BACK[finished.reason],
                usage=m.Usage(
                    prompt_tokens=finished.usage.prompt_tokens,
                    completion_tokens=finished.usage.completion_tokens,
                    cached_prompt_tokens=finished.usage.cached_prompt_tokens,
                    reasoning_tokens=finished.usage.reasoning_tokens,
                ),
                stop_string=finished.stop_string if finished.HasField("stop_string") else None,
                stop_token_id=finished.stop_token_id if finished.HasField("stop_token_id") else None,
            )
        case kind:
            raise ValueError(f"unknown event {kind!r} in a generation stream")


def _delta(message: generation_pb2.Delta) -> m.Delta:
    # One for each token of every stream. Reading a field costs a lookup and an object, and walking over a repeated one
    # costs twice as much as copying it, so each is read once, and those that are empty nearly always are not walked.
    logprobs, tool_calls = message.logprobs, message.tool_calls
    return m.Delta(
        text=message.text,
        token_ids=tuple(message.token_ids[:]),
        logprobs=tuple(_logprob_from_proto(entry) for entry in logprobs) if logprobs else (),
        tool_calls=tuple(call_delta_from_proto(part) for part in tool_calls) if tool_calls else (),
        reasoning=message.reasoning,
    )


def _logprob_to_proto(entry: m.TokenLogprob) -> generation_pb2.TokenLogprob:
    return generation_pb2.TokenLogprob(
        chosen=_candidate_to_proto(entry.chosen), top=[_candidate_to_proto(candidate) for candidate in entry.top]
    )


def _logprob_from_proto(entry: generation_pb2.TokenLogprob) -> m.TokenLogprob:
    return m.TokenLogprob(
        chosen=_candidate_from_proto(entry.chosen),
        top=tuple(_candidate_from_proto(candidate) for candidate in entry.top),
    )


def _candidate_to_proto(candidate: m.TokenCandidate) -> generation_pb2.TokenCandidate:
    return generation_pb2.TokenCandidate(
        token_id=candidate.token_id, bytes=candidate.token_bytes, logprob=candidate.logprob
    )


def _candidate_from_proto(candidate: generation_pb2.TokenCandidate) -> m.TokenCandidate:
    return m.TokenCandidate(candidate.token_id, candidate.bytes, candidate.logprob)
