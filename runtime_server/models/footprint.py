"""What a model takes of a device's memory, and what of it fits. Pure: one arithmetic for loading and for asking before.

``weights + workspace + streams × context × bytes per token``, the context rounded up to whole blocks of the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

from runtime_server.models import cpu_format, cuda_format
from runtime_server.models.decoder import DecoderConfig
from runtime_server.models.quantizations import CPU, CUDA

QUANTIZATIONS = {"cpu": CPU, "cuda": CUDA}
"""The weight formats that each kind of device runs."""
USABLE_SHARE = {"cpu": 1.0, "cuda": 0.9}
"""Share of the free memory that a model may take in all. A card that is full to the last byte fails in mid-step."""
CUDA_WORKSPACE_BYTES = 10**9
"""Assumed, not measured: the libraries' context and handles, and what lies between the operators of a step."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """The sizes that memory follows from. All are bytes, but for ``block_tokens``."""

    weight_bytes: int
    workspace_bytes: int
    kv_bytes_per_token: int
    block_tokens: int

    @property
    def fixed_bytes(self) -> int:
        """What is taken before the first request."""
        return self.weight_bytes + self.workspace_bytes

    @property
    def block_bytes(self) -> int:
        """One block of the cache."""
        return self.block_tokens * self.kv_bytes_per_token

    def cache_bytes(self, streams: int, context: int) -> int:
        """Keys and values of ``streams`` requests of ``context`` tokens each."""
        return streams * -(-context // self.block_tokens) * self.block_bytes

    def total_bytes(self, streams: int, context: int) -> int:
        """Everything together."""
        return self.fixed_bytes + self.cache_bytes(streams, context)

    def most_streams(self, context: int, usable_bytes: int) -> int:
        """How many requests of ``context`` tokens fit into ``usable_bytes``; 0 where not even one does."""
        return max(0, usable_bytes - self.fixed_bytes) // self.cache_bytes(1, context)

    def longest_context(self, streams: int, usable_bytes: int) -> int:
        """The longest context of ``streams`` requests that fit into ``usable_bytes``, in tokens; 0 where none does."""
        blocks = max(0, usable_bytes - self.fixed_bytes) // (streams * self.block_bytes)
        return blocks * self.block_tokens

    def explain_fixed(self) -> str:
        """The first part of the sum, in words."""
        return f"weights {megabytes(self.weight_bytes)} + workspace {megabytes(self.workspace_bytes)}"


def footprint(
    kind: str,
    config: DecoderConfig,
    quantization: str,
    *,
    max_batch: int,
    step_tokens: int,
    stored_bytes: int | None = None,
) -> Footprint:
    """The footprint of a model on a ``cpu`` or a ``cuda`` device.

    Args:
        quantization: one of :data:`QUANTIZATIONS` of ``kind``.
        max_batch: requests that run at the same time.
        step_tokens: of prompts, in one step at most.
        stored_bytes: of the weights, where they are stored; without it, what their format takes at most.
    """
    weights = stored_bytes or weight_bytes(config, quantization)
    if kind == "cuda":
        tokens = cuda_format.block_tokens(config.head_dim)
        return Footprint(weights, CUDA_WORKSPACE_BYTES, cuda_format.kv_bytes_per_token(config), tokens)
    workspace = cpu_format.workspace_bytes(config, rows=step_tokens + max_batch, max_batch=max_batch)
    return Footprint(weights, workspace, cpu_format.kv_bytes_per_token(config), cpu_format.BLOCK_TOKENS)


def weight_bytes(config: DecoderConfig, quantization: str) -> int:
    """Bytes of the stored weights, but for the padding between them."""
    if quantization in CUDA:
        return cuda_format.weight_bytes(config, quantization)
    return cpu_format.weight_bytes(config, quantization)


def usable_bytes(kind: str, free_bytes: int) -> int:
    """What a model may take of ``free_bytes`` on a device of ``kind``."""
    return int(USABLE_SHARE[kind] * free_bytes)


def megabytes(count: int) -> str:
    """``123 MB``, as every line of the arithmetic writes it."""
    return f"{count / 1e6:,.0f} MB"
