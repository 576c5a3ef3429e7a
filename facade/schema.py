"""The JSON of a chat completion request, read into a :class:`~mantler.messages.GenerateRequest`.

Types are checked here; ranges are checked by :mod:`mantler.messages`, which every entrance shares. Fields that are
not known are ignored and ``null`` means the default, as with OpenAI. Every error names its parameter.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from facade.options import MESSAGE_NO_OPS, NO_OPS, refuse
from mantler.errors import ErrorCode, MantlerError, invalid, unsupported
from mantler.messages import (
    MAX_MESSAGES,
    MAX_PRIORITY,
    ChatMessage,
    ChatPrompt,
    GenerateRequest,
    Role,
    SamplingParams,
    StopParams,
)

MAX_STOP_STRINGS = 4
_INT64 = 2**63


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True, protected_namespaces=())


class MessageBody(_Body):
    """One element of ``messages``."""

    role: str
    content: Any = None
    name: str | None = None
    tool_calls: list[Any] | None = None
    tool_call_id: str | None = None
    function_call: Any = None
    audio: Any = None
    refusal: str | None = None


class StreamOptionsBody(_Body):
    """``stream_options``."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatBody(_Body):
    """The body of ``POST /v1/chat/completions``."""

    model: str
    # Only the first bad element is told; an error for each of millions would take gigabytes.
    messages: list[MessageBody] = Field(fail_fast=True, max_length=MAX_MESSAGES)
    stream: bool | None = None
    stream_options: StreamOptionsBody | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    min_tokens: int | None = None
    stop: str | list[Any] | None = None
    stop_token_ids: list[int] | None = Field(None, fail_fast=True)
    ignore_eos: bool | None = None
    priority: int | None = None
    cache_salt: str | None = None
    # They change nothing in the answer: who asks, and how the client files it.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    # Known, and refused unless they ask for nothing: facade.options.
    n: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    logit_bias: dict[str, Any] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    function_call: Any = None
    response_format: dict[str, Any] | None = None
    modalities: list[Any] | None = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    moderation: Any = None
    store: bool | None = None
    service_tier: str | None = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of token counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


def parse_chat_body(raw: bytes) -> ChatBody:
    """The request's body. Raises INVALID_REQUEST for what is no JSON object, else errors that name a parameter."""
    try:
        # Refuses what Python's own parser lets through: NaN, lone surrogates, nesting that ends in RecursionError.
        value = pydantic_core.from_json(raw, allow_inf_nan=False)
    except ValueError:
        raise MantlerError(ErrorCode.INVALID_REQUEST, "The body is not valid JSON in UTF-8.") from None
    if not isinstance(value, dict):
        raise MantlerError(ErrorCode.INVALID_REQUEST, "The body must be a JSON object.")
    try:
        body = ChatBody.model_validate(value)
    except ValidationError as error:
        raise _named_error(error) from None
    _refuse_unsupported(body)
    return body


def to_generate_request(body: ChatBody, request_id: str) -> GenerateRequest:
    """What the runtime is asked for. Raises ``MantlerError`` naming the parameter that is out of range."""
    return GenerateRequest(
        request_id=request_id,
        model=body.model,
        prompt=ChatPrompt(tuple(_turn(f"messages[{i}]", turn) for i, turn in enumerate(body.messages))),
        sampling=_sampling(body),
        stop=_stop(body),
        priority=_priority(body),
        cache_salt=body.cache_salt,
    )


def _refuse_unsupported(body: ChatBody) -> None:
    if body.n is not None and body.n < 1:
        raise invalid("n", f"must be at least 1, got {body.n}.")
    if body.stream_options is not None:
        if not body.stream:
            raise invalid("stream_options", "is only allowed when stream is true.")
        name = "stream_options.include_obfuscation"
        refuse(name, body.stream_options.include_obfuscation, NO_OPS[name])
    for name, no_op in NO_OPS.items():
        if "." not in name:
            refuse(name, getattr(body, name), no_op)


def _turn(where: str, turn: MessageBody) -> ChatMessage:
    try:
        role = Role(turn.role)
    except ValueError:
        raise invalid(f"{where}.role", "must be system, developer, user, assistant or tool.") from None
    for name, no_op in MESSAGE_NO_OPS.items():
        refuse(f"{where}.{name}", getattr(turn, name), no_op)
    content = _content(f"{where}.content", turn.content)
    if content is None and role is not Role.ASSISTANT:
        raise invalid(f"{where}.content", f"is required with the role {role.value}.")
    return ChatMessage(role=role, content=content, name=turn.name)


def _content(where: str, content: Any) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(where, "must be a string or an array of content parts.")
    if not content:
        raise invalid(where, "must hold at least one content part.")
    return "".join(_part(f"{where}[{i}]", part) for i, part in enumerate(content))


def _part(where: str, part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise invalid(where, "must be an object with a type.")
    if kind in ("image_url", "input_audio", "file", "refusal"):
        raise unsupported(where, f"of type {kind} is not supported")
    if kind != "text":
        raise invalid(f"{where}.type", "must be text, the only kind that is supported.")
    text = part.get("text")
    if not isinstance(text, str):
        raise invalid(f"{where}.text", "must be a string.")
    return text


def _sampling(body: ChatBody) -> SamplingParams:
    seed = body.seed
    if seed is not None:
        if not -_INT64 <= seed < _INT64:
            raise invalid("seed", f"must be between {-_INT64} and {_INT64 - 1}, got {seed}.")
        seed %= 2 * _INT64  # the same 64 bits without a sign
    given = {"temperature": body.temperature, "top_p": body.top_p, "top_k": body.top_k, "min_p": body.min_p}
    return SamplingParams(seed=seed, **_set(given))


def _stop(body: ChatBody) -> StopParams:
    strings = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if len(strings) > MAX_STOP_STRINGS:
        raise invalid("stop", f"must hold at most {MAX_STOP_STRINGS} strings, got {len(strings)}.")
    if not all(isinstance(string, str) for string in strings):
        raise invalid("stop", _STRINGS)
    limits: list[int] = []
    for name in ("max_tokens", "max_completion_tokens"):
        limit: int | None = getattr(body, name)
        if limit is not None:
            with _spelled("max_tokens", name):
                StopParams(max_tokens=limit)
            limits.append(limit)
    given = {"min_tokens": body.min_tokens, "ignore_eos": body.ignore_eos}
    return StopParams(
        max_tokens=min(limits, default=None),
        stop_strings=tuple(strings),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        **_set(given),
    )


def _priority(body: ChatBody) -> int:
    priority = body.priority or 0
    # Clients outside may stand back for others, not push ahead of them.
    if not 0 <= priority <= MAX_PRIORITY:
        raise invalid("priority", f"must be between 0 and {MAX_PRIORITY}, got {priority}.")
    return priority


def _set(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


@contextlib.contextmanager
def _spelled(param: str, spelling: str) -> Iterator[None]:
    """Errors about ``param`` name it as the client did."""
    try:
        yield
    except MantlerError as error:
        if error.param != param:
            raise
        message = error.message.replace(param, spelling, 1)
        raise MantlerError(error.code, message, param=spelling) from None


_STRINGS = "must be a string or an array of strings."
_EXPECTED = {
    "missing": "is required.",
    "string_type": "must be a string.",
    "string_unicode": "must be valid Unicode.",
    "int_type": "must be an integer.",
    "int_from_float": "must be an integer.",
    "float_type": "must be a number.",
    "finite_number": "must be a finite number.",
    "bool_type": "must be true or false.",
    "list_type": "must be an array.",
    "too_long": f"must hold at most {MAX_MESSAGES} messages.",
    "dict_type": "must be an object.",
    "model_type": "must be an object.",
    "model_attributes_type": "must be an object.",
}


def _named_error(error: ValidationError) -> MantlerError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    location = first["loc"]
    if location[0] == "stop":
        return invalid("stop", _STRINGS)
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")
    return invalid(param, _EXPECTED.get(first["type"], "is not valid."))
