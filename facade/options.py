"""Options that are known, of the OpenAI API and of vLLM's, and that cannot be honoured.

Each may be sent with the values that ask for nothing; any other value is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mantler.errors import unsupported

NoOp = Callable[[Any], bool]


def _one_of(*values: object) -> NoOp:
    # True == 1, and [] is not hashable: compare type and value.
    return lambda value: any(type(value) is type(known) and value == known for known in values)


def _never(value: Any) -> bool:
    return False


NO_OPS: dict[str, NoOp] = {
    "reasoning_effort": _never,
    "functions": _one_of([]),
    "function_call": _one_of("none"),
    "modalities": _one_of(["text"]),
    "audio": _never,
    "prediction": _never,
    "web_search_options": _never,
    "verbosity": _one_of("medium"),
    "moderation": _never,
    # Ignoring it would lose what the client wants kept.
    "store": _one_of(False),
    # Only one tier exists; one that costs less or answers sooner cannot be had.
    "service_tier": _one_of("auto", "default"),
    "prompt_cache_retention": _one_of("in_memory"),
    "prompt_cache_options": _never,
    "best_of": _one_of(1),
    "use_beam_search": _one_of(False),
    "length_penalty": _one_of(1, 1.0),
    "bad_words": _one_of([]),
    "allowed_token_ids": _never,
    "logits_processors": _one_of([]),
    "prompt_logprobs": _never,
    "echo": _one_of(False),
    "include_stop_str_in_output": _one_of(False),
    "skip_special_tokens": _one_of(True),
    "return_token_ids": _one_of(False),
    "return_tokens_as_token_ids": _one_of(False),
    "include_reasoning": _one_of(True),
    "truncate_prompt_tokens": _never,
    "add_generation_prompt": _one_of(True),
    "continue_final_message": _one_of(False),
    "chat_template": _never,
    "documents": _one_of([]),
    "guided_decoding_backend": _never,
    "guided_whitespace_pattern": _never,
}
"""Per option, whether a value that is not null asks for nothing. ``null`` always does."""

COMPLETION_NO_OPS: dict[str, NoOp] = {
    "suffix": _one_of(""),
    "prompt_embeds": _never,
    "add_special_tokens": _one_of(True),
    # Of conversations: here the number itself is logprobs.
    "top_logprobs": _one_of(0),
    **{
        name: NO_OPS[name]
        for name in (
            "store",
            "service_tier",
            "use_beam_search",
            "length_penalty",
            "bad_words",
            "allowed_token_ids",
            "logits_processors",
            "prompt_logprobs",
            "include_stop_str_in_output",
            "skip_special_tokens",
            "return_token_ids",
            "return_tokens_as_token_ids",
            "truncate_prompt_tokens",
            "guided_decoding_backend",
            "guided_whitespace_pattern",
        )
    },
}
"""The same for completions."""

TOKENIZE_NO_OPS: dict[str, NoOp] = {
    "add_special_tokens": _one_of(True),
    "return_token_strs": _one_of(False),
    **{
        name: NO_OPS[name]
        for name in (
            "add_generation_prompt",
            "continue_final_message",
            "chat_template",
            "documents",
        )
    },
}
"""The same for counting tokens."""

STREAM_NO_OPS: dict[str, NoOp] = {"include_obfuscation": _one_of(False)}
"""The same for the fields of ``stream_options``."""

STRUCTURED_OUTPUTS_NO_OPS: dict[str, NoOp] = {
    "structural_tag": _never,
    "whitespace_pattern": _never,
    "disable_any_whitespace": _one_of(False),
    "disable_additional_properties": _one_of(False),
    "disable_fallback": _one_of(False, True),
}
"""The same for the fields of ``structured_outputs``."""

MESSAGE_NO_OPS: dict[str, NoOp] = {"function_call": _never, "audio": _never, "refusal": _never}
"""The same for the fields of a message."""


def refuse_unsupported(given: Mapping[str, Any], no_ops: Mapping[str, NoOp], where: str = "") -> None:
    """Raises UNSUPPORTED_PARAMETER naming the first of ``no_ops`` that asks for something.

    Args:
        given: an object of the request.
        where: its place in the body, as errors name it, with a dot at its end; empty for the body itself.
    """
    for name, no_op in no_ops.items():
        value = given.get(name)
        if value is not None and not no_op(value):
            raise unsupported(f"{where}{name}")
