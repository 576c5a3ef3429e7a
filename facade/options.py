"""Options of the OpenAI API that are known and cannot be honoured yet.

Each may be sent with the values that ask for nothing; any other value is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mantler.errors import unsupported

NoOp = Callable[[Any], bool]


def _one_of(*values: object) -> NoOp:
    # True == 1, and [] is not hashable: compare type and value.
    return lambda value: any(type(value) is type(known) and value == known for known in values)


def _is_text_format(value: Any) -> bool:
    return isinstance(value, dict) and value.get("type") == "text"


def _never(value: Any) -> bool:
    return False


NO_OPS: dict[str, NoOp] = {
    "n": _one_of(1),
    "logprobs": _one_of(False),
    "top_logprobs": _one_of(0),
    "logit_bias": _one_of({}),
    "presence_penalty": _one_of(0.0),
    "frequency_penalty": _one_of(0.0),
    "repetition_penalty": _one_of(1.0),
    "tools": _one_of([]),
    "tool_choice": _one_of("none"),
    "functions": _one_of([]),
    "function_call": _one_of("none"),
    "response_format": _is_text_format,
    "modalities": _one_of(["text"]),
    "audio": _never,
    "prediction": _never,
    "web_search_options": _never,
    "reasoning_effort": _never,
    "verbosity": _one_of("medium"),
    "moderation": _never,
    # Ignoring it would lose what the client wants kept.
    "store": _one_of(False),
    # Only one tier exists; one that costs less or answers sooner cannot be had.
    "service_tier": _one_of("auto", "default"),
    "stream_options.include_obfuscation": _one_of(False),
}
"""Per option, whether a value that is not null asks for nothing. ``null`` always does."""

MESSAGE_NO_OPS: dict[str, NoOp] = {
    "tool_calls": _one_of([]),
    "tool_call_id": _never,
    "function_call": _never,
    "audio": _never,
    "refusal": _never,
}
"""The same for the fields of a message."""


def refuse(name: str, value: object, no_op: NoOp) -> None:
    """Raises UNSUPPORTED_PARAMETER naming ``name`` unless ``value`` asks for nothing."""
    if value is not None and not no_op(value):
        raise unsupported(name)
