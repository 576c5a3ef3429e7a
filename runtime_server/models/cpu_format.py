"""How many bytes a decoder takes on the processor: weights as :mod:`runtime_server.models.linear` packs them. Pure."""

from __future__ import annotations

import math

from runtime_server.models.decoder import DecoderConfig
from runtime_server.models.linear import PANEL
from runtime_server.models.quantize import BLOCK
from runtime_server.models.shapes import weight_shapes

BLOCK_TOKENS = 16
"""Tokens in a block of the cache; the kernels know it."""
_KV_BYTES = 2
"""bf16"""
_FP32_BYTES = 4


def kv_bytes_per_token(config: DecoderConfig) -> int:
    """Bytes of keys and values that one token of one sequence takes."""
    return 2 * config.layers * config.kv_heads * config.head_dim * _KV_BYTES


def weight_bytes(config: DecoderConfig, quantization: str) -> int:
    """Bytes of the stored weights, at most: ``int8`` keeps weights that were published with 4 bits at that size."""
    bytes_per_weight = _FP32_BYTES if quantization == "fp32" else 1 + 2 / BLOCK
    total = 0.0
    for shape in weight_shapes(config).values():
        if len(shape) == 1:
            total += _FP32_BYTES * shape[0]
        else:
            total += _whole(shape[0], PANEL) * _whole(shape[1], BLOCK) * bytes_per_weight
    rope = _FP32_BYTES * config.context_length * 2 * len(config.rope_inv_freq)
    return math.ceil(total) + rope


def workspace_bytes(config: DecoderConfig, *, rows: int, max_batch: int) -> int:
    """Bytes that a step needs besides: what lies between the operators, for ``rows`` packed tokens, and the logits.

    Between two operators of a layer lie at most the rows before it, what it made of them, and its residual.
    """
    heads = (config.heads + 2 * config.kv_heads) * config.head_dim
    widest = max(heads + config.heads * config.head_dim, 2 * config.intermediate, 2 * config.hidden)
    return _FP32_BYTES * (rows * (2 * config.hidden + widest) + max_batch * config.vocab_size)


def _whole(count: int, unit: int) -> int:
    return -(-count // unit) * unit
