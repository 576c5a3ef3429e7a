"""The sizes of a decoder on a CUDA device. Pure."""

from __future__ import annotations

from runtime_server.models.decoder import DecoderConfig
from runtime_server.models.shapes import parameter_count

_BF16_BYTES = 2
GROUP = 32
"""Weights of ``int4`` that share one scale: what the mixed GEMM of onnxruntime-gpu 1.31 takes."""
_OUTPUTS = 64
"""It takes multiples of so many outputs."""


TOP = 64
"""Likeliest tokens of a row that come back from the card."""


def top_count(config: DecoderConfig) -> int:
    """Likeliest tokens of a row that come back; fewer where the vocabulary is smaller."""
    return min(TOP, config.vocab_size)


def block_tokens(head_dim: int) -> int:
    """Tokens in a block of the cache. Flash attention, the fast path, reads multiples of these."""
    return 256 if head_dim <= 64 else 128


def quantizable(shape: tuple[int, ...]) -> bool:
    """Whether ``int4`` packs a linear layer of ``shape [outputs, inputs]``. Others stay bf16."""
    outputs, inputs = shape
    return outputs % _OUTPUTS == 0 and inputs % GROUP == 0


def kv_bytes_per_token(config: DecoderConfig) -> int:
    """Bytes of keys and values, bf16, that one token of one sequence takes."""
    return 2 * config.layers * config.kv_heads * config.head_dim * _BF16_BYTES


def weight_bytes(config: DecoderConfig, quantization: str) -> int:
    """Bytes of the weights as ``bf16`` or ``int4``, whose embedding, head and vectors stay bf16."""
    total = _BF16_BYTES * parameter_count(config)
    if quantization == "int4":
        heads, hidden, inner = config.heads * config.head_dim, config.hidden, config.intermediate
        qkv = heads + 2 * config.kv_heads * config.head_dim
        linears = [(qkv, hidden), (hidden, heads), (2 * inner, hidden), (hidden, inner)]
        count = config.layers * sum(outputs * inputs for outputs, inputs in linears if quantizable((outputs, inputs)))
        total -= count * _BF16_BYTES - count // 2 - count // GROUP * _BF16_BYTES
    rope = _BF16_BYTES * config.context_length * 2 * len(config.rope_inv_freq)
    return total + rope
