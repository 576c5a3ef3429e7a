"""How the memory for keys and values is divided. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from runtime_server.models.footprint import Footprint, megabytes

MIN_REQUEST_TOKENS = 256
"""Less is of no use to anyone."""
FREE_MEMORY_SHARE = 0.4
"""Share of the free memory that is taken at most where the user names no size and others need the memory, too."""


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
    footprint: Footprint,
    max_batch: int,
    context_length: int,
    max_request_tokens: int,
    wanted_bytes: int,
    usable_bytes: int,
    cache_share: float = FREE_MEMORY_SHARE,
) -> KvPlan:
    """As many blocks as the memory holds, but no more than ``max_batch`` requests of full length fill.

    Args:
        footprint: of the model on its device.
        max_batch: requests that run at the same time.
        context_length: what the model was made for.
        max_request_tokens: the user's wish, or 0 for as much as fits, up to the context length.
        wanted_bytes: memory for keys and values as the user wishes, or 0 for a share of ``usable_bytes``.
        usable_bytes: of the device, for all that the model takes.
        cache_share: that share.

    Raises: ``KvPlanError``.
    """
    if max_request_tokens > context_length:
        raise KvPlanError(
            f"max_request_tokens is {max_request_tokens}, but the model's context length is {context_length}",
            f"choose at most {context_length}",
        )
    room = usable_bytes - footprint.fixed_bytes
    if room < 0:
        raise KvPlanError(
            f"{footprint.explain_fixed()} = {megabytes(footprint.fixed_bytes)}, "
            f"but {megabytes(usable_bytes)} of memory may be taken",
            "free some memory, or choose a smaller model or quantization: `mantler fit` says what a model takes",
        )
    budget = wanted_bytes or min(int(cache_share * usable_bytes), room)
    tokens = footprint.block_tokens
    longest = max_request_tokens or context_length
    blocks = min(budget // footprint.block_bytes, max_batch * -(-longest // tokens))
    least = max_request_tokens or min(context_length, MIN_REQUEST_TOKENS)
    if blocks * tokens < least:
        size = footprint.kv_bytes_per_token
        raise KvPlanError(
            f"{least} tokens × {size} bytes = {megabytes(least * size)} of keys and values, "
            f"but {megabytes(budget)} are to be used",
            "lower --max-request-tokens, or raise --kv-memory-mb" if max_request_tokens else "raise --kv-memory-mb",
        )
    planned = blocks * footprint.block_bytes
    if planned > room:
        raise KvPlanError(
            f"{footprint.explain_fixed()} + {megabytes(planned)} of keys and values = "
            f"{megabytes(footprint.fixed_bytes + planned)}, but {megabytes(usable_bytes)} of memory may be taken",
            f"lower --kv-memory-mb to at most {room // 10**6}, or --max-batch or --max-request-tokens",
        )
    return KvPlan(blocks, min(longest, blocks * tokens), planned)
