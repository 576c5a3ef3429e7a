"""Writes tiny models as their makers would publish them: GGUF files and Hugging Face folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from runtime_server.models import rope
from runtime_server.models.decoder import DecoderConfig
from runtime_server.models.shapes import weight_shapes
from runtime_server.models.vocabulary import byte_alphabet
from tests.reference_decoder import RandomWeights

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w"), ("Ġw", "o")]
TOKENS = [*SPECIAL, *byte_alphabet(), *(left + right for left, right in MERGES), "<tool>"]
TOOL_ID = len(TOKENS) - 1
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'tool' %}{{ raise_exception('No tools here.') }}{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
EPSILON = 2.0**-17
"""A number that fp32 holds exactly, so that it comes back unchanged."""
CONTEXT = 64

_GGUF_TOP = {"embed": "token_embd", "final_norm": "output_norm", "lm_head": "output"}
_GGUF_LAYER = {
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "attn_norm": "attn_norm",
    "o": "attn_output",
    "mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
_HF_TOP = {"embed": "model.embed_tokens", "final_norm": "model.norm", "lm_head": "lm_head"}
_HF_LAYER = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "o": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def tiny_config(architecture: str, *, tied: bool = False) -> DecoderConfig:
    """A decoder of two layers."""
    return DecoderConfig(
        architecture=architecture,
        layers=2,
        hidden=64,
        intermediate=96,
        heads=4,
        kv_heads=2,
        head_dim=16,
        vocab_size=len(TOKENS),
        context_length=CONTEXT,
        rms_eps=EPSILON,
        rope_inv_freq=tuple(rope.inverse_frequencies(16, 10_000.0).tolist()),
        tied_embeddings=tied,
        qkv_bias=architecture == "qwen2",
        qk_norm=architecture == "qwen3",
    )


def interleave(rows: NDArray[np.float32], head_dim: int) -> NDArray[np.float32]:
    """Half-split rotary order as GGUF stores it for llama: row i and row i + head_dim / 2 become neighbours."""
    order = [i // 2 + (i % 2) * head_dim // 2 for i in range(head_dim)]
    return np.concatenate([rows[start : start + head_dim][order] for start in range(0, len(rows), head_dim)])


def write_gguf(
    path: Path,
    config: DecoderConfig,
    *,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    fields: Mapping[str, Any] | None = None,
    drop: str = "",
    extra: Mapping[str, NDArray[np.float32]] | None = None,
) -> Path:
    """A GGUF file with random weights.

    Args:
        kind: type of the matrices whose rows are whole blocks.
        fields: further fields or replacements of the usual ones.
        drop: name of a weight to leave out.
        extra: tensors by their GGUF name.
    """
    arch = config.architecture
    writer = gguf.GGUFWriter(path, arch)
    for key, value in (_gguf_fields(config) | dict(fields or {})).items():
        _add_field(writer, key, value)
    weights = RandomWeights(config)
    for name in weight_shapes(config):
        values = weights.load(name)
        part = name.rsplit(".", 1)[-1]
        if arch in ("llama", "mistral") and part.removesuffix("_bias") in ("q", "k"):
            values = interleave(values, config.head_dim)
        if name != drop:
            _add_tensor(writer, gguf_name(name), values, kind)
    for name, values in (extra or {}).items():
        _add_tensor(writer, name, values, gguf.GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_folder(
    folder: Path,
    config: DecoderConfig,
    *,
    dtype: Any = np.float32,
    shards: int = 1,
    settings: Mapping[str, Any] | None = None,
    drop: str = "",
) -> Path:
    """A Hugging Face folder with random weights; ``settings`` go into ``config.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = RandomWeights(config)
    tensors = {hf_name(n): weights.load(n).astype(dtype) for n in weight_shapes(config) if n != drop}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
    else:
        places = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(tensors)}
        for place in set(places.values()):
            save_file({name: tensors[name] for name in tensors if places[name] == place}, folder / place)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    _write_json(folder / "config.json", _hf_settings(config) | dict(settings or {}))
    _write_json(folder / "generation_config.json", {"eos_token_id": [2]})
    _write_json(
        folder / "tokenizer_config.json",
        {"chat_template": TEMPLATE, "eos_token": {"content": "<|im_end|>"}, "bos_token": "<|im_start|>"},
    )
    byte_level_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def byte_level_tokenizer() -> Tokenizer:
    """The tokenizer of the tiny models."""
    tokenizer = Tokenizer(BPE(vocab={token: i for i, token in enumerate(TOKENS)}, merges=MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens(["<tool>"])
    return tokenizer


def bfloat16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """``values`` rounded as bfloat16 stores them."""
    return values.astype(ml_dtypes.bfloat16).astype(np.float32)


def gguf_name(name: str) -> str:
    """GGUF's name of a weight."""
    if name in _GGUF_TOP:
        return f"{_GGUF_TOP[name]}.weight"
    _, layer, part = name.split(".")
    suffix = "bias" if part.endswith("_bias") else "weight"
    return f"blk.{layer}.{_GGUF_LAYER[part.removesuffix('_bias')]}.{suffix}"


def hf_name(name: str) -> str:
    """Hugging Face's name of a weight."""
    if name in _HF_TOP:
        return f"{_HF_TOP[name]}.weight"
    _, layer, part = name.split(".")
    suffix = "bias" if part.endswith("_bias") else "weight"
    return f"model.layers.{layer}.{_HF_LAYER[part.removesuffix('_bias')]}.{suffix}"


def _gguf_fields(config: DecoderConfig) -> dict[str, Any]:
    arch = config.architecture
    return {
        f"{arch}.block_count": config.layers,
        f"{arch}.context_length": config.context_length,
        f"{arch}.embedding_length": config.hidden,
        f"{arch}.feed_forward_length": config.intermediate,
        f"{arch}.attention.head_count": config.heads,
        f"{arch}.attention.head_count_kv": config.kv_heads,
        f"{arch}.attention.layer_norm_rms_epsilon": config.rms_eps,
        f"{arch}.rope.freq_base": 10_000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL) - 1) + [4],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in MERGES],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }


def _hf_settings(config: DecoderConfig) -> dict[str, Any]:
    return {
        "model_type": config.architecture,
        "hidden_size": config.hidden,
        "intermediate_size": config.intermediate,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.rms_eps,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": config.tied_embeddings,
        "hidden_act": "silu",
    }


def _add_field(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    match value:
        case None:
            return
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)


def _add_tensor(
    writer: gguf.GGUFWriter, name: str, values: NDArray[np.float32], kind: gguf.GGMLQuantizationType
) -> None:
    block = gguf.GGML_QUANT_SIZES[kind][0]
    if kind == gguf.GGMLQuantizationType.F32 or values.ndim == 1 or values.shape[-1] % block:
        writer.add_tensor(name, values)
    else:
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values))
