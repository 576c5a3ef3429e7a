"""How the memory for keys and values is divided. Pure."""

from __future__ import annotations

from dataclasses import dataclass

MIN_REQUEST_TOKENS = 256
"""Less is of no use to anyone."""
FREE_MEMORY_SHARE = 0.4
"""Share of the free memory that is taken where the user names no size."""


class KvPlanError(ValueError):
    """The wishes do not fit the memory. The message shows the arithmetic, ``hint`` the way out."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class KvPlan:
    """Slots of equal size."""

    slots: int
    max_request_tokens: int
    """Prompt and output of one request."""
    bytes: int


def plan_kv(
    *,
    bytes_per_token: int,
    slots: int,
    spare_tokens: int,
    context_length: int,
    max_request_tokens: int,
    budget_bytes: int,
) -> KvPlan:
    """Divides ``budget_bytes`` into ``slots``.

    Args:
        bytes_per_token: keys and values of one token in all layers.
        spare_tokens: room that the device needs in each slot beyond the request's tokens.
        context_length: what the model was made for.
        max_request_tokens: the user's wish, or 0 for as much as fits, up to the context length.
        budget_bytes: memory for keys and values.

    Raises: ``KvPlanError``.
    """
    fitting = budget_bytes // (slots * bytes_per_token) - spare_tokens
    wanted = max_request_tokens or min(context_length, max(fitting, MIN_REQUEST_TOKENS))
    if wanted > context_length:
        raise KvPlanError(
            f"max_request_tokens is {wanted}, but the model's context length is {context_length}",
            f"choose at most {context_length}",
        )
    total = slots * (wanted + spare_tokens) * bytes_per_token
    if total > budget_bytes:
        raise KvPlanError(
            f"{slots} slots × ({wanted} + {spare_tokens}) tokens × {bytes_per_token} bytes = {total / 1e6:.0f} MB of "
            f"keys and values, but {budget_bytes / 1e6:.0f} MB are to be used",
            "lower --max-batch or --max-request-tokens, or raise --kv-memory-mb",
        )
    return KvPlan(slots, wanted, total)
