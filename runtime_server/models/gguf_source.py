"""Reads a GGUF file: configuration, weights, tokenizer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime_server.models import rope
from runtime_server.models.decoder import DecoderConfig
from runtime_server.models.errors import PullError
from runtime_server.models.gguf_file import GgufFile, GgufTensor
from runtime_server.models.gguf_tokenizer import read_tokenizer
from runtime_server.models.shapes import check_architecture, check_config, check_weights
from runtime_server.models.source import ModelSource

_TOP = {"token_embd.weight": "embed", "output_norm.weight": "final_norm", "output.weight": "lm_head"}
_LAYER = {
    "attn_norm.weight": "attn_norm",
    "attn_q.weight": "q",
    "attn_k.weight": "k",
    "attn_v.weight": "v",
    "attn_q.bias": "q_bias",
    "attn_k.bias": "k_bias",
    "attn_v.bias": "v_bias",
    "attn_q_norm.weight": "q_norm",
    "attn_k_norm.weight": "k_norm",
    "attn_output.weight": "o",
    "ffn_norm.weight": "mlp_norm",
    "ffn_gate.weight": "gate",
    "ffn_up.weight": "up",
    "ffn_down.weight": "down",
}
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
_ROPE_FACTORS = "rope_freqs.weight"
_INTERLEAVED = {"llama", "mistral"}
"""Architectures whose q and k rows GGUF stores in interleaved rotary order."""


def open_gguf(path: Path) -> ModelSource:
    """Reads the header of ``path``; weights are read when they are asked for.

    Raises:
        PullError: the file is damaged, or holds what Mantler does not run.
    """
    file = GgufFile(path)
    names = {_our_name(name): name for name in file.tensors if name != _ROPE_FACTORS}
    config = read_config(file, set(names))
    check_config(config)
    check_weights(config, {ours: file.tensors[theirs].shape for ours, theirs in names.items()})
    weights = GgufWeights(file.tensors, names, config)
    return ModelSource("gguf", config, weights, read_tokenizer(file), (path,))


def read_config(file: GgufFile, names: set[str]) -> DecoderConfig:
    """The decoder that the file's fields and the ``names`` of its weights describe."""
    architecture = check_architecture(file.need("general.architecture", str))
    _refuse_variants(file, architecture)
    hidden = file.need(f"{architecture}.embedding_length", int)
    heads = file.need(f"{architecture}.attention.head_count", int)
    if heads < 1:
        raise PullError("The model's configuration is damaged: it has no attention heads.")
    head_dim = file.get(f"{architecture}.attention.key_length", int, hidden // heads)
    if file.get(f"{architecture}.attention.value_length", int, head_dim) != head_dim:
        raise PullError("Models whose keys and values differ in size are not supported.")
    if file.get(f"{architecture}.rope.dimension_count", int, head_dim) != head_dim:
        raise PullError("Models that rotate only a part of each head are not supported.")
    context_length = file.need(f"{architecture}.context_length", int)
    window = file.get(f"{architecture}.attention.sliding_window", int, 0)
    embedding = file.tensors.get("token_embd.weight")
    angles, scale = _read_rope(file, architecture, head_dim, context_length)
    return DecoderConfig(
        architecture=architecture,
        layers=file.need(f"{architecture}.block_count", int),
        hidden=hidden,
        intermediate=file.need(f"{architecture}.feed_forward_length", int),
        heads=heads,
        kv_heads=file.get(f"{architecture}.attention.head_count_kv", int, heads),
        head_dim=head_dim,
        vocab_size=0 if embedding is None else embedding.shape[0],
        context_length=context_length,
        rms_eps=file.need(f"{architecture}.attention.layer_norm_rms_epsilon", float),
        rope_inv_freq=angles,
        rope_attention_scale=scale,
        sliding_window=window if 0 < window < context_length else None,
        tied_embeddings="lm_head" not in names,
        qkv_bias="layers.0.q_bias" in names,
        qk_norm=architecture == "qwen3",
    )


class GgufWeights:
    """Dequantises one weight at a time out of the mapped file."""

    def __init__(self, tensors: Mapping[str, GgufTensor], names: Mapping[str, str], config: DecoderConfig) -> None:
        self._tensors = {ours: tensors[theirs] for ours, theirs in names.items()}
        interleaved = config.architecture in _INTERLEAVED
        self._heads = {"q": config.heads, "k": config.kv_heads} if interleaved else {}
        for tensor in {tensor.kind: tensor for tensor in self._tensors.values()}.values():
            tensor.load_row()  # a kind that cannot be read is an error now, not after half of the work

    def load(self, name: str) -> NDArray[np.float32]:
        """The weight in fp32. Raises ``KeyError`` for an unknown name, ``PullError`` where it holds NaN or infinity."""
        values = self._tensors[name].load()
        if not np.isfinite(values).all():
            raise PullError(f"The weight {name!r} holds values that are not numbers: the file is damaged.")
        heads = self._heads.get(name.rsplit(".", 1)[-1].removesuffix("_bias"))
        return half_split(values, heads) if heads else values


def half_split(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Reorders the rows of each head from interleaved rotary pairs (0, 1), (2, 3) … to halves (0, n/2), (1, n/2+1) …"""
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def _our_name(name: str) -> str:
    block = _BLOCK.fullmatch(name)
    if block is not None and block.group(2) in _LAYER:
        return f"layers.{int(block.group(1))}.{_LAYER[block.group(2)]}"
    return _TOP.get(name, name)


def _refuse_variants(file: GgufFile, architecture: str) -> None:
    if file.get(f"{architecture}.expert_count", int, 0) > 0:
        raise PullError(f"Mixtures of experts ({architecture}.expert_count) are not supported.")
    if file.get("split.count", int, 1) > 1:
        raise PullError("The model is split over several GGUF files.", hint="merge them with gguf-split first")
    for key in ("rope.scaling.yarn_log_multiplier", "logit_scale", "residual_scale", "embedding_scale"):
        if f"{architecture}.{key}" in file:
            raise PullError(f"Models with {architecture}.{key} are not supported.")


def _read_rope(
    file: GgufFile, architecture: str, head_dim: int, context_length: int
) -> tuple[tuple[float, ...], float]:
    prefix = f"{architecture}.rope"
    base = file.get(f"{prefix}.freq_base", float, 10_000.0)
    if not base > 1 or not 0 < head_dim <= 2**12:
        raise PullError(f"The model's configuration is damaged: rotary base {base}, heads of {head_dim}.")
    angles, scale = rope.inverse_frequencies(head_dim, base), 1.0
    factor = file.get(f"{prefix}.scaling.factor", float, file.get(f"{prefix}.scale_linear", float, 1.0)) or 1.0
    kind = file.get(f"{prefix}.scaling.type", str, "linear" if factor != 1.0 else "none")
    if kind == "linear":
        angles = rope.linear(angles, factor)
    elif kind == "yarn":
        angles = rope.yarn(
            angles,
            base=base,
            factor=factor,
            original_context=file.get(f"{prefix}.scaling.original_context_length", int, context_length),
            beta_fast=file.get(f"{prefix}.scaling.yarn_beta_fast", float, 32.0),
            beta_slow=file.get(f"{prefix}.scaling.yarn_beta_slow", float, 1.0),
        )
        own = file.get(f"{prefix}.scaling.yarn_attn_factor", float, 1.0)
        scale = rope.yarn_attention_scale(factor) * file.get(f"{prefix}.scaling.attn_factor", float, own)
    elif kind != "none":
        raise PullError(f"Rotary scaling of type {kind!r} is not supported.", hint="supported: none, linear, yarn")
    factors = file.tensors.get(_ROPE_FACTORS)
    if factors is not None:
        divisors = factors.load()
        if divisors.shape != angles.shape or not (divisors > 0).all():
            raise PullError(f"The model's {_ROPE_FACTORS} are damaged.")
        angles = angles / divisors
    return tuple(angles.tolist()), scale
