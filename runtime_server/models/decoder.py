"""What a decoder-only language model looks like, whatever file it came from.

A source (GGUF, safetensors) reads its file into a :class:`DecoderConfig` and hands out weights by the names
below; :mod:`runtime_server.models.graph` builds the ONNX model from the two.

Weight names, with their shapes in ``[out, in]`` order:

=============================  ==================================================
``embed``                      ``[vocab_size, hidden]``
``final_norm``                 ``[hidden]``
``lm_head``                    ``[vocab_size, hidden]``, absent with tied embeddings
``layers.N.attn_norm``         ``[hidden]``
``layers.N.q``                 ``[heads * head_dim, hidden]``, half-split rotary order
``layers.N.k``, ``.v``         ``[kv_heads * head_dim, hidden]``, k in half-split rotary order
``layers.N.q_bias`` …          ``[rows of q, k, v]``, with ``qkv_bias``
``layers.N.q_norm``, k_norm    ``[head_dim]``, with ``qk_norm``
``layers.N.o``                 ``[hidden, heads * head_dim]``
``layers.N.mlp_norm``          ``[hidden]``
``layers.N.gate``, ``.up``     ``[intermediate, hidden]``
``layers.N.down``              ``[hidden, intermediate]``
=============================  ==================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

SUPPORTED_ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The shape of a llama-family decoder."""

    architecture: str
    """One of :data:`SUPPORTED_ARCHITECTURES`."""
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    rms_eps: float
    rope_inv_freq: tuple[float, ...]
    """``head_dim / 2`` angles per position in radians; rope scaling is already applied."""
    rope_attention_scale: float = 1.0
    """Factor on cos and sin, as YaRN has it."""
    sliding_window: int | None = None
    """Keys that a query sees, itself included; ``None`` means all before it."""
    tied_embeddings: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False


class Weights(Protocol):
    """Hands out weights by name, one at a time, so that a conversion never holds them all."""

    def load(self, name: str) -> NDArray[np.float32]:
        """The weight as fp32. Raises ``KeyError`` for a name that the file does not have."""
        ...
