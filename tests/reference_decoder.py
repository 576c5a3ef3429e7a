"""The decoder in plain numpy, written from its definition: slow, in float64, one sequence at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runtime_server.models.decoder import DecoderConfig, Weights

Array = NDArray[np.float64]


class RandomWeights:
    """Weights of any decoder, the same for the same seed."""

    def __init__(self, config: DecoderConfig, seed: int = 0) -> None:
        self._shapes = _shapes(config)
        self._seed = seed

    def load(self, name: str) -> NDArray[np.float32]:
        generator = np.random.default_rng([self._seed, *name.encode()])
        values = generator.standard_normal(self._shapes[name])
        if "norm" in name:
            values = 1 + 0.2 * values
        elif "bias" not in name and name != "embed":
            values /= np.sqrt(self._shapes[name][-1])
        return values.astype(np.float32)


def logits(config: DecoderConfig, weights: Weights, token_ids: Sequence[int]) -> Array:
    """Logits after every token, ``[tokens, vocab_size]``."""

    def load(name: str) -> Array:
        return weights.load(name).astype(np.float64)

    hidden = load("embed")[list(token_ids)]
    for layer in range(config.layers):
        name = f"layers.{layer}"
        hidden = hidden + _attention(config, load, name, _norm(config, hidden, load(f"{name}.attn_norm")))
        normed = _norm(config, hidden, load(f"{name}.mlp_norm"))
        gate = normed @ load(f"{name}.gate").T
        hidden = hidden + (gate / (1 + np.exp(-gate)) * (normed @ load(f"{name}.up").T)) @ load(f"{name}.down").T
    output: Array = _norm(config, hidden, load("final_norm"))
    result: Array = output @ load("embed" if config.tied_embeddings else "lm_head").T
    return result


def _attention(config: DecoderConfig, load, name: str, normed: Array) -> Array:  # type: ignore[no-untyped-def]
    tokens = len(normed)
    parts = {}
    for part, heads in (("q", config.heads), ("k", config.kv_heads), ("v", config.kv_heads)):
        values = normed @ load(f"{name}.{part}").T
        if config.qkv_bias:
            values = values + load(f"{name}.{part}_bias")
        values = values.reshape(tokens, heads, config.head_dim)
        if config.qk_norm and part != "v":
            values = _norm(config, values, load(f"{name}.{part}_norm"))
        parts[part] = values if part == "v" else _rotate(config, values)
    group = config.heads // config.kv_heads
    result = np.empty((tokens, config.heads, config.head_dim))
    for query in range(tokens):
        window = config.sliding_window or tokens
        first = max(0, query - window + 1)
        for head in range(config.heads):
            keys = parts["k"][first : query + 1, head // group]
            scores = keys @ parts["q"][query, head] / np.sqrt(config.head_dim)
            shares = np.exp(scores - scores.max())
            result[query, head] = shares / shares.sum() @ parts["v"][first : query + 1, head // group]
    output: Array = result.reshape(tokens, -1) @ load(f"{name}.o").T
    return output


def _rotate(config: DecoderConfig, values: Array) -> Array:
    angles = np.outer(np.arange(len(values)), config.rope_inv_freq)[:, None]
    cos, sin = np.cos(angles) * config.rope_attention_scale, np.sin(angles) * config.rope_attention_scale
    low, high = np.split(values, 2, axis=-1)
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


def _norm(config: DecoderConfig, values: Array, weight: Array) -> Array:
    result: Array = values / np.sqrt((values**2).mean(axis=-1, keepdims=True) + config.rms_eps) * weight
    return result


def _shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "embed": (config.vocab_size, config.hidden),
        "lm_head": (config.vocab_size, config.hidden),
        "final_norm": (config.hidden,),
    }
    layer = {
        "attn_norm": (config.hidden,),
        "mlp_norm": (config.hidden,),
        "q": (q, config.hidden),
        "k": (kv, config.hidden),
        "v": (kv, config.hidden),
        "q_bias": (q,),
        "k_bias": (kv,),
        "v_bias": (kv,),
        "q_norm": (config.head_dim,),
        "k_norm": (config.head_dim,),
        "o": (config.hidden, q),
        "gate": (config.intermediate, config.hidden),
        "up": (config.intermediate, config.hidden),
        "down": (config.hidden, config.intermediate),
    }
    return shapes | {f"layers.{i}.{name}": shape for i in range(config.layers) for name, shape in layer.items()}
