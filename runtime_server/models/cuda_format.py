"""How many bytes a decoder takes on a CUDA device. Pure."""

from __future__ import annotations

from runtime_server.models.decoder import DecoderConfig
from runtime_server.models.graph import parameter_count
from runtime_server.models.shapes import weight_shapes

_BF16_BYTES = 2
_GROUP = 32
"""Weights of ``int4`` that share one scale."""


def block_tokens(head_dim: int) -> int:
    """Tokens in a block of the cache, so that paged attention takes its fast path."""
    return 128 if head_dim >= 128 else 256


def kv_bytes_per_token(config: DecoderConfig) -> int:
    """Bytes of keys and values, bf16, that one token of one sequence takes."""
    return 2 * config.layers * config.kv_heads * config.head_dim * _BF16_BYTES


def weight_bytes(config: DecoderConfig, quantization: str) -> int:
    """Bytes of the weights as ``bf16`` or ``int4``, whose embedding, head and vectors stay bf16."""
    if quantization == "bf16":
        return _BF16_BYTES * parameter_count(config)
    total = 0.0
    for name, shape in weight_shapes(config).items():
        count = shape[0] * (shape[1] if len(shape) == 2 else 1)
        packed = len(shape) == 2 and name not in ("embed", "lm_head")
        total += count * (0.5 + _BF16_BYTES / _GROUP) if packed else count * _BF16_BYTES
    return int(total)
