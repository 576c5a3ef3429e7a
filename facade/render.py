"""Events of a generation as OpenAI's objects. Pure: text in, JSON out."""

from __future__ import annotations

import json
import uuid
from json.encoder import encode_basestring as _quoted
from typing import Any

from mantler.messages import Finished, FinishReason, ModelInfo, Started, Usage


def completion_id() -> str:
    """A new id of a completion."""
    return f"chatcmpl-{uuid.uuid4().hex}"


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
    }


def completion_object(
    answer_id: str, created_unix_s: int, started: Started, text: str, finished: Finished
) -> dict[str, Any]:
    """The whole answer of a request that does not stream."""
    return {
        "id": answer_id,
        "object": "chat.completion",
        "created": created_unix_s,
        "model": started.model,
        "system_fingerprint": started.fingerprint or None,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": finished.reason.value,
            }
        ],
        "usage": usage_object(finished.usage),
    }


class ChunkRenderer:
    """The chunks of one streamed answer, as JSON in UTF-8.

    What all chunks share is rendered once, so that a chunk of text costs little more than quoting it.
    """

    def __init__(self, answer_id: str, created_unix_s: int, started: Started, *, include_usage: bool) -> None:
        shared = {
            "id": answer_id,
            "object": "chat.completion.chunk",
            "created": created_unix_s,
            "model": started.model,
            "system_fingerprint": started.fingerprint or None,
        }
        self._head = _compact(shared)[:-1] + ',"choices":['
        self._tail = '],"usage":null}' if include_usage else "]}"

    def role(self, index: int) -> bytes:
        """The first chunk of a choice."""
        return self._chunk(index, '{"role":"assistant","content":"","refusal":null}', "null")

    def content(self, index: int, text: str) -> bytes:
        """A piece of a choice's text."""
        return self._chunk(index, f'{{"content":{_quoted(text)}}}', "null")

    def finish(self, index: int, reason: FinishReason) -> bytes:
        """The last chunk of a choice."""
        return self._chunk(index, "{}", f'"{reason.value}"')

    def usage(self, usage: Usage) -> bytes:
        """The last chunk of a stream whose client asked for token counts."""
        return f'{self._head}],"usage":{_compact(usage_object(usage))}}}'.encode()

    def _chunk(self, index: int, delta: str, reason: str) -> bytes:
        return (
            f'{self._head}{{"index":{index},"delta":{delta},"logprobs":null,"finish_reason":{reason}}}{self._tail}'
        ).encode()


def _compact(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
