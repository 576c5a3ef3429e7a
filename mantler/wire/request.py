"""Requests for text and for token counts, as protobuf messages and back."""

from __future__ import annotations

from typing import assert_never

from mantler import messages as m
from mantler.errors import invalid
from mantler.v1 import generation_pb2
from mantler.wire.chat import chat_from_proto, chat_to_proto
from mantler.wire.constraints import constraint_from_proto, write_constraint
from mantler.wire.sampling import sampling_from_proto, sampling_to_proto, stop_from_proto, stop_to_proto


def request_to_proto(request: m.GenerateRequest) -> generation_pb2.GenerateRequest:
    """A request for the wire."""
    message = generation_pb2.GenerateRequest(
        request_id=request.request_id,
        model=request.model,
        sampling=sampling_to_proto(request.sampling),
        stop=stop_to_proto(request.stop),
        n=request.n,
        priority=request.priority,
        cache_salt=request.cache_salt,
    )
    prompt = request.prompt
    match prompt:
        case m.ChatPrompt():
            message.chat.CopyFrom(chat_to_proto(prompt))
        case m.TextPrompt():
            message.text = prompt.text
        case m.TokenPrompt():
            message.token_ids.ids.extend(prompt.token_ids)
        case _:
            assert_never(prompt)
    if request.logprobs is not None:
        message.logprobs.top_logprobs = request.logprobs.top
    if request.constraint is not None:
        write_constraint(message, request.constraint)
    if request.resume is not None:
        for token_ids in request.resume.delivered:
            message.resume.delivered.add(ids=token_ids)
        message.resume.finished.extend(sorted(request.resume.finished))
    return message


def request_from_proto(message: generation_pb2.GenerateRequest) -> m.GenerateRequest:
    """A request off the wire. Raises ``MantlerError`` naming the field that is bad or not supported."""
    return m.GenerateRequest(
        request_id=message.request_id,
        model=message.model,
        prompt=_prompt_from_proto(message),
        sampling=sampling_from_proto(message.sampling),
        stop=stop_from_proto(message.stop),
        logprobs=m.LogprobsParams(message.logprobs.top_logprobs) if message.HasField("logprobs") else None,
        n=message.n if message.HasField("n") else 1,
        priority=message.priority,
        cache_salt=message.cache_salt if message.HasField("cache_salt") else None,
        constraint=constraint_from_proto(message),
        resume=_resume_from_proto(message),
    )


def count_request_to_proto(
    model: str, prompt: m.ChatPrompt | m.TextPrompt, *, include_token_ids: bool
) -> generation_pb2.CountTokensRequest:
    """A prompt whose tokens are to be counted, for the wire."""
    message = generation_pb2.CountTokensRequest(model=model, include_token_ids=include_token_ids)
    if isinstance(prompt, m.ChatPrompt):
        message.chat.CopyFrom(chat_to_proto(prompt))
    else:
        message.text = prompt.text
    return message


def count_request_from_proto(message: generation_pb2.CountTokensRequest) -> m.ChatPrompt | m.TextPrompt:
    """The prompt whose tokens are to be counted."""
    match message.WhichOneof("prompt"):
        case "chat":
            return chat_from_proto(message.chat)
        case "text":
            return m.TextPrompt(message.text)
        case _:
            raise invalid("prompt", "must be set: chat or text.")


def _resume_from_proto(message: generation_pb2.GenerateRequest) -> m.ResumePoint | None:
    if not message.HasField("resume"):
        return None
    delivered = tuple(tuple(tokens.ids) for tokens in message.resume.delivered)
    return m.ResumePoint(delivered, frozenset(message.resume.finished))


def _prompt_from_proto(message: generation_pb2.GenerateRequest) -> m.Prompt:
    match message.WhichOneof("prompt"):
        case "chat":
            return chat_from_proto(message.chat)
        case "text":
            return m.TextPrompt(message.text)
        case "token_ids":
            return m.TokenPrompt(tuple(message.token_ids.ids))
        case _:
            raise invalid("prompt", "must be set: chat, text or token_ids.")
