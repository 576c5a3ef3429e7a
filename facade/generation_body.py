"""The fields that every request for generated text has, whatever its prompt.

Types are checked here; ranges are checked by :mod:`mantler.messages`, which every entrance shares.
"""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field

from facade.json_body import JsonBody
from facade.options import STREAM_NO_OPS, refuse_unsupported
from facade.spelling import spelled_as
from mantler.errors import invalid
from mantler.messages import MAX_LOGIT_BIAS, MAX_LOGIT_BIASES, MAX_PRIORITY, SamplingParams, StopParams

MAX_STOP_STRINGS = 4
_INT64 = 2**63
_TOKEN_ID = re.compile(r"[0-9]{1,10}")


class StreamOptionsBody(JsonBody):
    """``stream_options``."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class GenerationBody(JsonBody):
    """What chat completions and completions have in common."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptionsBody | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, Any] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    min_tokens: int | None = None
    stop: Any = None
    # Only the first bad element is told; an error for each of millions would take gigabytes.
    stop_token_ids: list[int] | None = Field(None, fail_fast=True)
    ignore_eos: bool | None = None
    priority: int | None = None
    cache_salt: str | None = None
    # They change nothing in the answer: who asks, and how the client files it.
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, Any] | None = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of token counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


def check_stream_options(body: GenerationBody) -> None:
    """Raises ``MantlerError`` for options of a stream where none was asked for, or that cannot be honoured."""
    if body.stream_options is None:
        return
    if not body.stream:
        raise invalid("stream_options", "is only allowed when stream is true.")
    refuse_unsupported(body.stream_options.model_dump(), STREAM_NO_OPS, "stream_options.")


def sampling_params(body: GenerationBody) -> SamplingParams:
    """How tokens are drawn. Raises ``MantlerError`` naming the parameter that is out of range."""
    seed = body.seed
    if seed is not None:
        if not -_INT64 <= seed < _INT64:
            raise invalid("seed", f"must be between {-_INT64} and {_INT64 - 1}, got {seed}.")
        seed %= 2 * _INT64  # the same 64 bits without a sign
    given = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "min_p": body.min_p,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "repetition_penalty": body.repetition_penalty,
    }
    return SamplingParams(seed=seed, logit_bias=_logit_bias(body.logit_bias or {}), **_set(given))


def stop_params(body: GenerationBody) -> StopParams:
    """When generation ends. Raises ``MantlerError`` naming the parameter that is out of range."""
    for name, limit in _token_limits(body).items():
        with spelled_as("max_tokens", name):
            StopParams(max_tokens=limit)
    given = {"min_tokens": body.min_tokens, "ignore_eos": body.ignore_eos}
    with spelled_as("max_tokens", max_tokens_spelling(body)):
        return StopParams(
            max_tokens=min(_token_limits(body).values(), default=None),
            stop_strings=_stop_strings(body.stop),
            stop_token_ids=tuple(body.stop_token_ids or ()),
            **_set(given),
        )


def max_tokens_spelling(body: GenerationBody) -> str:
    """The name under which the client gave the limit that counts, which is the smaller one."""
    limits = _token_limits(body)
    return min(limits, key=lambda name: limits[name], default="max_tokens")


def request_priority(body: GenerationBody) -> int:
    """The place among waiting requests. Clients outside may stand back for others, not push ahead of them."""
    priority = body.priority or 0
    if not 0 <= priority <= MAX_PRIORITY:
        raise invalid("priority", f"must be between 0 and {MAX_PRIORITY}, got {priority}.")
    return priority


def _token_limits(body: GenerationBody) -> dict[str, int]:
    return _set({"max_tokens": body.max_tokens, "max_completion_tokens": body.max_completion_tokens})


def _stop_strings(stop: Any) -> tuple[str, ...]:
    strings = [stop] if isinstance(stop, str) else [] if stop is None else stop
    if not isinstance(strings, list):
        raise invalid("stop", _STRINGS)
    if len(strings) > MAX_STOP_STRINGS:
        raise invalid("stop", f"must hold at most {MAX_STOP_STRINGS} strings, got {len(strings)}.")
    if not all(isinstance(string, str) for string in strings):
        raise invalid("stop", _STRINGS)
    return tuple(strings)


def _logit_bias(given: dict[str, Any]) -> tuple[tuple[int, float], ...]:
    if len(given) > MAX_LOGIT_BIASES:
        raise invalid("logit_bias", f"must hold at most {MAX_LOGIT_BIASES} tokens, got {len(given)}.")
    for key, bias in given.items():
        if not _TOKEN_ID.fullmatch(key):
            raise invalid("logit_bias", "every key must be a token id, in decimal digits.")
        if isinstance(bias, bool) or not isinstance(bias, int | float):
            raise invalid("logit_bias", "every value must be a number.")
        if not abs(bias) <= MAX_LOGIT_BIAS:
            raise invalid("logit_bias", f"every value must be between {-MAX_LOGIT_BIAS:g} and {MAX_LOGIT_BIAS:g}.")
    return tuple((int(key), float(bias)) for key, bias in given.items())


def _set(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


_STRINGS = "must be a string or an array of strings."
