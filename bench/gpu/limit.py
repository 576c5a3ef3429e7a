"""What a step of decoding has to read, and the time that the memory alone takes for it. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from runtime_server.models.decoder import DecoderConfig
from runtime_server.models.quantize import BLOCK
from runtime_server.models.shapes import weight_shapes

BF16_BYTES = 2
_EMBEDDING_BYTES = {"bf16": BF16_BYTES, "int4": BF16_BYTES, "fp32": 4, "int8": 1 + 2 / BLOCK}
"""Of one weight of the embedding, by format."""
_ROTATION_BYTES = {"bf16": BF16_BYTES, "int4": BF16_BYTES, "fp32": 4, "int8": 4}
"""Of one number of the table of rotations, which has a row for each position."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a step reads of a model: all its weights once, and each stream's own keys and values."""

    weight_bytes: int
    kv_bytes_per_token: int

    def step_bytes(self, batch: int, context: float) -> float:
        """Of a step of ``batch`` streams that look at ``context`` tokens each."""
        return self.weight_bytes + batch * context * self.kv_bytes_per_token

    def limit_share(self, batch: int, context: float, step_s: float, bytes_per_s: float) -> float:
        """The least time that the step can take, as a share of the time that it took."""
        return self.step_bytes(batch, context) / bytes_per_s / step_s


def stored_traffic(config: DecoderConfig, quantization: str, stored_bytes: int, kv_bytes_per_token: int) -> Traffic:
    """The traffic of a stored model, without the tables of which a step looks up a few rows.

    They are that of the rotations and the embedding, unless this is tied: then it is the head, too.
    """
    unread = _ROTATION_BYTES[quantization] * config.context_length * 2 * len(config.rope_inv_freq)
    if not config.tied_embeddings:
        unread += math.ceil(_EMBEDDING_BYTES[quantization] * config.vocab_size * config.hidden)
    return Traffic(stored_bytes - unread, kv_bytes_per_token)


def bf16_traffic(config: DecoderConfig) -> Traffic:
    """The traffic of a model whose weights, keys and values are all bf16."""
    shapes = weight_shapes(config)
    unread = 0 if config.tied_embeddings else math.prod(shapes["embed"])
    weights = sum(math.prod(shape) for shape in shapes.values()) - unread
    return Traffic(BF16_BYTES * weights, 2 * config.layers * config.kv_heads * config.head_dim * BF16_BYTES)
