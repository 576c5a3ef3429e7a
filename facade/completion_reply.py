"""Events of a generation as OpenAI's text completions. Pure: text in, JSON out."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from facade.collected import CollectedChoice
from facade.completion_logprobs import CompletionLogprobs
from facade.render import usage_object
from mantler.messages import Delta, FinishReason, Started, TokenLogprob, Usage


class CompletionReply:
    """One answer of ``POST /v1/completions``, whole or in chunks of JSON in UTF-8. The chunks have the same shape.

    Args:
        choices: of all prompts.
        top_logprobs: likeliest tokens to list at each position; ``None`` where no log probabilities were asked for.
        include_usage: whether a stream ends with token counts.
    """

    def __init__(self, created_unix_s: int, *, choices: int, top_logprobs: int | None, include_usage: bool) -> None:
        self._shared: dict[str, Any] = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": created_unix_s,
        }
        self._logprobs = None if top_logprobs is None else [CompletionLogprobs(top_logprobs) for _ in range(choices)]
        self._include_usage = include_usage

    def whole(self, started: Started, choices: Sequence[CollectedChoice], usage: Usage) -> dict[str, Any]:
        """The answer of a request that does not stream."""
        self._name_model(started)
        return {
            **self._shared,
            "choices": [
                _choice(index, choice.text, self._logprobs_object(index, choice.logprobs), choice.reason)
                for index, choice in enumerate(choices)
            ],
            "usage": usage_object(usage),
        }

    def begin(self, started: Started) -> Iterable[bytes]:
        """Nothing comes before the first piece of text: there are no roles here."""
        self._name_model(started)
        return ()

    def delta(self, index: int, delta: Delta) -> Iterator[bytes]:
        """The next piece of a choice: no chunk where nothing of it is certain yet."""
        if delta.text or delta.logprobs:
            logprobs = self._logprobs_object(index, delta.logprobs) if delta.logprobs else None
            yield self._chunk([_choice(index, delta.text, logprobs)])

    def finish(self, index: int, reason: FinishReason) -> bytes:
        """The last chunk of a choice."""
        return self._chunk([_choice(index, "", reason=reason)])

    def end(self, usage: Usage) -> Iterable[bytes]:
        """The last chunk of a stream whose client asked for token counts."""
        return [self._chunk([], usage)] if self._include_usage else ()

    def _name_model(self, started: Started) -> None:
        self._shared |= {"model": started.model, "system_fingerprint": started.fingerprint or None}

    def _logprobs_object(self, index: int, entries: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        return None if self._logprobs is None else self._logprobs[index].next_object(entries)

    def _chunk(self, choices: list[dict[str, Any]], usage: Usage | None = None) -> bytes:
        counts = {"usage": None if usage is None else usage_object(usage)} if self._include_usage else {}
        chunk = {**self._shared, "choices": choices, **counts}
        return json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode()


def _choice(
    index: int, text: str, logprobs: dict[str, Any] | None = None, reason: FinishReason | None = None
) -> dict[str, Any]:
    return {
        "index": index,
        "text": text,
        "logprobs": logprobs,
        "finish_reason": reason.value if reason else None,
    }
