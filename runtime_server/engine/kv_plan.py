"""How the memory for keys and values is divided. Pure."""

from __future__ import annotations

from dataclasses import dataclass

MIN_REQUEST_TOKENS = 256
"""Less is of no use to anyone."""
FREE_MEMORY_SHARE = 0.4
"""Share of the free memory that is taken at most where the user names no size."""


class KvPlanError(ValueError):
    """The wishes do not fit the memory. The message shows the arithmetic, ``hint`` the way out."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class KvPlan:
    """Blocks that all requests share."""

    blocks: int
    max_request_tokens: int
    """Prompt and output of one request."""
    bytes: int


def plan_kv(
    *,
    bytes_per_token: int,
    block_tokens: int,
    max_batch: int,
    context_length: int,
    max_request_tokens: int,
    wanted_bytes: int,
    free_bytes: int,
) -> KvPlan:
    """As many blocks as the memory holds, but no more than ``max_batch`` requests of full length fill.

    Args:
        bytes_per_token: keys and values of one token in all layers.
        block_tokens: tokens of one block.
        max_batch: requests that run at the same time.
        context_length: what the model was made for.
        max_request_tokens: the user's wish, or 0 for as much as fits, up to the context length.
        wanted_bytes: memory for keys and values as the user wishes, or 0 for a share of ``free_bytes``.
        free_bytes: of the machine.

    Raises: ``KvPlanError``.
    """
    if max_request_tokens > context_length:
        raise KvPlanError(
            f"max_request_tokens is {max_request_tokens}, but the model's context length is {context_length}",
            f"choose at most {context_length}",
        )
    block_bytes = block_tokens * bytes_per_token
    budget = wanted_bytes or int(FREE_MEMORY_SHARE * free_bytes)
    longest = max_request_tokens or context_length
    blocks = min(budget // block_bytes, max_batch * -(-longest // block_tokens))
    least = max_request_tokens or min(context_length, MIN_REQUEST_TOKENS)
    if blocks * block_tokens < least:
        raise KvPlanError(
            f"{least} tokens × {bytes_per_token} bytes = {least * bytes_per_token / 1e6:.0f} MB of keys and values, "
            f"but {budget / 1e6:.0f} MB are to be used",
            "lower --max-request-tokens, or raise --kv-memory-mb" if max_request_tokens else "raise --kv-memory-mb",
        )
    return KvPlan(blocks, min(longest, blocks * block_tokens), blocks * block_bytes)
