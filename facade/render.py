"""Events of a generation as OpenAI's objects. Pure: text in, JSON out."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from json.encoder import encode_basestring as _quoted
from typing import Any

from facade.collected import CollectedChoice
from facade.logprobs import logprobs_object
from mantler.messages import Delta, FinishReason, ModelInfo, Started, TokenLogprob, ToolCallDelta, Usage


def model_object(model: ModelInfo) -> dict[str, Any]:
    """A model of ``/v1/models``."""
    return {"id": model.id, "object": "model", "created": model.created_unix_s, "owned_by": "mantler"}


def usage_object(usage: Usage) -> dict[str, Any]:
    """``usage``."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_prompt_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


class ChatReply:
    """One answer of ``POST /v1/chat/completions``, whole or in chunks of JSON in UTF-8.

    What all chunks share is rendered once, so that a chunk of text costs little more than quoting it.

    Args:
        n: choices.
        logprobs: whether log probabilities were asked for.
        include_usage: whether a stream ends with token counts.
    """

    def __init__(self, created_unix_s: int, *, n: int, logprobs: bool, include_usage: bool) -> None:
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created_unix_s = created_unix_s
        self._n = n
        self._logprobs = logprobs
        self._include_usage = include_usage
        self._head = self._tail = ""

    def whole(self, started: Started, choices: Sequence[CollectedChoice], usage: Usage) -> dict[str, Any]:
        """The answer of a request that does not stream."""
        return {
            **self._shared("chat.completion", started),
            "choices": [self._choice(index, choice) for index, choice in enumerate(choices)],
            "usage": usage_object(usage),
        }

    def begin(self, started: Started) -> Iterable[bytes]:
        """The first chunk of every choice, in the order of their indices, before any of them goes on."""
        self._head = _compact(self._shared("chat.completion.chunk", started))[:-1] + ',"choices":['
        self._tail = '],"usage":null}' if self._include_usage else "]}"
        return [self._chunk(i, '{"role":"assistant","content":"","refusal":null}') for i in range(self._n)]

    def delta(self, index: int, delta: Delta) -> Iterator[bytes]:
        """The next piece of a choice: no chunk where nothing of it is certain yet."""
        if delta.reasoning:
            yield self._chunk(index, f'{{"reasoning_content":{_quoted(delta.reasoning)}}}')
        if delta.text or delta.logprobs:
            yield self._chunk(index, f'{{"content":{_quoted(delta.text)}}}', logprobs=delta.logprobs)
        for part in delta.tool_calls:
            yield self._chunk(index, f'{{"tool_calls":[{_compact(_call_delta(part))}]}}')

    def finish(self, index: int, reason: FinishReason) -> bytes:
        """The last chunk of a choice."""
        return self._chunk(index, "{}", reason=f'"{reason.value}"')

    def end(self, usage: Usage) -> Iterable[bytes]:
        """The last chunk of a stream whose client asked for token counts."""
        return [f'{self._head}],"usage":{_compact(usage_object(usage))}}}'.encode()] if self._include_usage else []

    def _shared(self, kind: str, started: Started) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created_unix_s,
            "model": started.model,
            "system_fingerprint": started.fingerprint or None,
        }

    def _choice(self, index: int, choice: CollectedChoice) -> dict[str, Any]:
        return {
            "index": index,
            "message": _message(choice),
            "logprobs": logprobs_object(choice.logprobs) if self._logprobs else None,
            "finish_reason": choice.reason.value if choice.reason else None,
        }

    def _chunk(self, index: int, delta: str, *, logprobs: Sequence[TokenLogprob] = (), reason: str = "null") -> bytes:
        probabilities = _compact(logprobs_object(logprobs)) if logprobs else "null"
        return (
            f'{self._head}{{"index":{index},"delta":{delta},"logprobs":{probabilities},"finish_reason":{reason}}}'
            f"{self._tail}"
        ).encode()


def _message(choice: CollectedChoice) -> dict[str, Any]:
    text, reasoning, calls = choice.text, choice.reasoning, choice.tool_calls
    message: dict[str, Any] = {"role": "assistant", "content": None if calls and not text else text, "refusal": None}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ]
    return message


def _call_delta(part: ToolCallDelta) -> dict[str, Any]:
    if part.id is None:
        return {"index": part.index, "function": {"arguments": part.arguments}}
    function = {"name": part.name, "arguments": part.arguments}
    return {"index": part.index, "id": part.id, "type": "function", "function": function}


def _compact(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
