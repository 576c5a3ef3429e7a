"""``prompt`` of a completion, and token ids wherever a client sends them. Pure."""

from __future__ import annotations

from typing import Any

from mantler.errors import invalid
from mantler.messages import TextPrompt, TokenPrompt

MAX_PROMPTS = 128
"""Of one request. OpenAI takes more, but no queue here has room for many more."""
MAX_TOKEN_ID = 2**32 - 1

_KINDS = "must be a string, an array of strings, an array of token ids, or an array of arrays of token ids."


def read_prompts(given: Any) -> tuple[TextPrompt | TokenPrompt, ...]:
    """The prompts of a request, one or several. Raises ``MantlerError`` naming the one that is wrong."""
    match given:
        case str():
            return (TextPrompt(given),)
        case [int(), *_]:
            return (read_token_ids("prompt", given),)
        case [str() | list(), *_] if len(given) <= MAX_PROMPTS:
            return tuple(_prompt(f"prompt[{i}]", each, type(given[0])) for i, each in enumerate(given))
        case [str() | list(), *_]:
            raise invalid("prompt", f"must hold at most {MAX_PROMPTS} prompts, got {len(given)}.")
        case []:
            raise invalid("prompt", "must hold at least one prompt.")
        case _:
            raise invalid("prompt", _KINDS)


def read_token_ids(where: str, given: list[Any]) -> TokenPrompt:
    """``given``, an array of the request at ``where``, as token ids."""
    if not given:
        raise invalid(where, "must hold at least one token.")
    # No bool is a token, although Python takes it for an integer.
    if any(type(each) is not int for each in given):
        raise invalid(where, "every token id must be an integer.")
    if min(given) < 0 or max(given) > MAX_TOKEN_ID:
        raise invalid(where, f"every token id must be between 0 and {MAX_TOKEN_ID}.")
    return TokenPrompt(tuple(given))


def _prompt(where: str, given: Any, kind: type[Any]) -> TextPrompt | TokenPrompt:
    if not isinstance(given, kind):
        raise invalid(where, "must be of the same kind as the first prompt.")
    return TextPrompt(given) if isinstance(given, str) else read_token_ids(where, given)
