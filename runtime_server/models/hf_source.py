"""Reads a Hugging Face folder: ``config.json``, safetensors, tokenizer. No torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from runtime_server.models.decoder import DecoderConfig
from runtime_server.models.errors import PullError
from runtime_server.models.hf_rope import read_rope
from runtime_server.models.hf_tokenizer import read_tokenizer
from runtime_server.models.json_file import JsonFile
from runtime_server.models.safetensors_files import SafetensorsFiles
from runtime_server.models.shapes import check_architecture, check_config, check_weights
from runtime_server.models.source import ModelSource

CONFIG_FILE = "config.json"

_TOP = {"model.embed_tokens.weight": "embed", "model.norm.weight": "final_norm", "lm_head.weight": "lm_head"}
_LAYER = {
    "input_layernorm.weight": "attn_norm",
    "self_attn.q_proj.weight": "q",
    "self_attn.k_proj.weight": "k",
    "self_attn.v_proj.weight": "v",
    "self_attn.q_proj.bias": "q_bias",
    "self_attn.k_proj.bias": "k_bias",
    "self_attn.v_proj.bias": "v_bias",
    "self_attn.q_norm.weight": "q_norm",
    "self_attn.k_norm.weight": "k_norm",
    "self_attn.o_proj.weight": "o",
    "post_attention_layernorm.weight": "mlp_norm",
    "mlp.gate_proj.weight": "gate",
    "mlp.up_proj.weight": "up",
    "mlp.down_proj.weight": "down",
}
_BLOCK = re.compile(r"model\.layers\.(\d+)\.(.+)")
_RECOMPUTED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
"""Old exports carry these; the configuration says the same."""


def open_folder(folder: Path) -> ModelSource:
    """Reads the configuration in ``folder``; weights are read when they are asked for.

    Raises:
        PullError: a file is missing or damaged, or the model is one that Mantler does not run.
    """
    raw = JsonFile.need(folder / CONFIG_FILE)
    check_architecture(raw.get("model_type", str))
    tensors = SafetensorsFiles(folder)
    names = {_our_name(name): name for name in tensors.shapes if not _RECOMPUTED.fullmatch(name)}
    config = read_config(raw, set(names))
    check_config(config)
    if config.tied_embeddings:
        names.pop("lm_head", None)  # a copy of the embedding, where it is stored at all
    check_weights(config, {ours: tensors.shapes[theirs] for ours, theirs in names.items()})
    tokenizer = read_tokenizer(folder, raw)
    files = (folder / CONFIG_FILE, folder / "tokenizer.json", *tensors.files)
    return ModelSource("safetensors", config, tensors.renamed(names), tokenizer, files)


def read_config(raw: JsonFile, names: set[str]) -> DecoderConfig:
    """The decoder that ``config.json`` and the ``names`` of the weights describe."""
    architecture = check_architecture(raw.get("model_type", str))
    _refuse_variants(raw)
    hidden, heads = raw.need_value("hidden_size", int), raw.need_value("num_attention_heads", int)
    if heads < 1:
        raise PullError("The model's configuration is damaged: it has no attention heads.")
    head_dim = raw.get("head_dim", int, 128 if architecture == "qwen3" else hidden // heads)
    context_length = raw.need_value("max_position_embeddings", int)
    angles = read_rope(raw, head_dim, context_length)
    layers = raw.need_value("num_hidden_layers", int)
    return DecoderConfig(
        architecture=architecture,
        layers=layers,
        hidden=hidden,
        intermediate=raw.need_value("intermediate_size", int),
        heads=heads,
        kv_heads=raw.get("num_key_value_heads", int, heads),
        head_dim=head_dim,
        vocab_size=raw.need_value("vocab_size", int),
        context_length=angles.context_length,
        rms_eps=raw.get("rms_norm_eps", float, 1e-6),
        rope_inv_freq=angles.inv_freq,
        rope_attention_scale=angles.attention_scale,
        sliding_window=_sliding_window(raw, architecture, layers, angles.context_length),
        tied_embeddings=raw.get("tie_word_embeddings", bool, False),
        qkv_bias="layers.0.q_bias" in names,
        qk_norm=architecture == "qwen3",
    )


def _our_name(name: str) -> str:
    block = _BLOCK.fullmatch(name)
    if block is not None and block.group(2) in _LAYER:
        return f"layers.{int(block.group(1))}.{_LAYER[block.group(2)]}"
    return _TOP.get(name, name)


def _refuse_variants(raw: JsonFile) -> None:
    activation = raw.get("hidden_act", str, "silu")
    if activation not in ("silu", "swish"):
        raise PullError(f"The activation {activation!r} is not supported.", hint="supported: silu")
    if raw.get("quantization_config", dict) is not None:
        raise PullError(
            "Weights that are already quantised in safetensors (quantization_config) are not supported.",
            hint="use the original model or a GGUF file",
        )
    if raw.get("partial_rotary_factor", float, 1.0) != 1.0:
        raise PullError("Models that rotate only a part of each head are not supported.")


def _sliding_window(raw: JsonFile, architecture: str, layers: int, context_length: int) -> int | None:
    window = raw.get("sliding_window", int)
    if window is None or not 0 < window < context_length:
        return None
    if architecture == "mistral":
        return int(window)
    if architecture == "llama" or not raw.get("use_sliding_window", bool, False):
        return None
    kinds: list[Any] | None = raw.get("layer_types", list)
    if kinds is None:
        full = raw.get("max_window_layers", int, 28)
        kinds = ["full_attention" if i < full else "sliding_attention" for i in range(min(layers, 1024))]
    if len(set(kinds)) > 1:
        raise PullError("Models that mix sliding and full attention are not supported.")
    return int(window) if kinds[:1] == ["sliding_attention"] else None
