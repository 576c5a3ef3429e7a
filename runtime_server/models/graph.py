"""Builds the ONNX model of a llama-family decoder.

The graph works on *packed* rows: the tokens of all sequences in one step, prompts and decodes together, stand one after
the other. Its nodes are the operators of ``runtime_server/native``; keys and values live in blocks of a shared cache,
which attention finds by a table per sequence. Inputs, with T packed tokens and B sequences:

====================  ==================  =====================================================================
``input_ids``         int64 ``[T]``       token ids
``row_starts``        int32 ``[B + 1]``   first packed row of each sequence, and T
``past_tokens``       int32 ``[B]``       tokens in the cache before this step
``block_table``       int32 ``[B, W]``    the sequence's blocks; places after its last one are not read
``logit_rows``        int64 ``[R]``       packed rows whose logits are wanted
``kv_cache``          bf16 as uint16 ``[blocks, layers, kv_heads, 2, 16 * head_dim]``, written in place
====================  ==================  =====================================================================

Output ``logits`` is fp32 ``[R, vocab_size]``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from runtime_server.models.decoder import DecoderConfig, Weights
from runtime_server.models.linear import Packed, interleaved, pack
from runtime_server.models.nodes import NATIVE, Nodes
from runtime_server.models.quantizations import DEFAULT_QUANTIZATION, STORED_BYTES
from runtime_server.models.tensor_file import TensorFile

MODEL_FILE = "model.onnx"
OPSET = 21
IR_VERSION = 10
BLOCK_TOKENS = 16
"""Tokens in a block of the cache; the kernels know it."""

Progress = Callable[[int, int], None]
"""Called with bytes of fp32 weights converted so far, and in all."""


def build(
    config: DecoderConfig,
    weights: Weights,
    folder: Path,
    *,
    quantization: str = DEFAULT_QUANTIZATION,
    progress: Progress = lambda done, total: None,
) -> None:
    """Writes the model into ``folder``, with its weights in a file beside it.

    Raises ``ValueError`` for an unknown quantisation, ``KeyError`` for a weight that is not there, and ``OSError``
    where the disk does not take it.
    """
    if quantization not in STORED_BYTES:
        raise ValueError(f"quantization must be one of {', '.join(STORED_BYTES)}, got {quantization!r}")
    total = work_bytes(config)
    path = folder / MODEL_FILE
    with TensorFile(path.with_suffix(".bin")) as file:
        counted = _Counted(weights, lambda done: progress(min(done, total), total))
        graph = _Decoder(config, counted, file, quantization).build()
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(NATIVE, 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="mantler"), path)
    progress(total, total)


def work_bytes(config: DecoderConfig) -> int:
    """Bytes of fp32 weights that :func:`build` goes through."""
    return 4 * parameter_count(config)


def parameter_count(config: DecoderConfig) -> int:
    """Number of weights; tied embeddings count once."""
    attention = config.hidden * config.head_dim * (2 * config.heads + 2 * config.kv_heads)
    mlp = 3 * config.hidden * config.intermediate
    extras = 2 * config.hidden
    if config.qkv_bias:
        extras += config.head_dim * (config.heads + 2 * config.kv_heads)
    if config.qk_norm:
        extras += 2 * config.head_dim
    embeddings = config.vocab_size * config.hidden * (1 if config.tied_embeddings else 2)
    return config.layers * (attention + mlp + extras) + embeddings + config.hidden


class _Counted:
    """Weights that report how many bytes of them have been loaded."""

    def __init__(self, weights: Weights, report: Callable[[int], None]) -> None:
        self._weights = weights
        self._report = report
        self._done = 0

    def load(self, name: str) -> NDArray[np.float32]:
        weight = self._weights.load(name)
        self._done += weight.nbytes
        self._report(self._done)
        return weight


class _Decoder:
    """Adds the nodes of the model. Methods return the name of the value that they add."""

    def __init__(self, config: DecoderConfig, weights: Weights, file: TensorFile, quantization: str) -> None:
        self._config = config
        self._weights = weights
        self._file = file
        self._quantization = quantization
        self._nodes = Nodes(file)

    def build(self) -> onnx.GraphProto:
        config, nodes = self._config, self._nodes
        self._rope_caches()
        embed = self._pack(self._weights.load("embed"))
        table = nodes.constant("embed", embed.data)
        hidden = nodes.native(
            "MantlerEmbedding",
            ["input_ids", table],
            "embedding",
            bits=embed.bits,
            in_features=embed.in_features,
            out_features=embed.out_features,
        )
        for layer in range(config.layers):
            hidden = self._layer(f"layers.{layer}", layer, hidden)
        wanted = nodes.add("Gather", [hidden, "logit_rows"], "wanted", axis=0)
        if config.tied_embeddings:
            self._linear(wanted, embed, "logits", data=table, norm="final_norm")
        else:
            self._linear(wanted, self._pack(self._weights.load("lm_head")), "logits", norm="final_norm")
        return helper.make_graph(nodes.list, "decoder", self._inputs(), self._outputs(), self._file.tensors)

    def _layer(self, name: str, layer: int, hidden: str) -> str:
        config = self._config
        weights = self._weights
        bias = ""
        if config.qkv_bias:
            bias = self._nodes.constant(f"{name}.qkv_bias", self._stacked(name, "q_bias", "k_bias", "v_bias"))
        qkv = self._pack(self._stacked(name, "q", "k", "v"))
        projected = self._linear(hidden, qkv, f"{name}/qkv", norm=f"{name}.attn_norm", bias=bias)
        attended = self._attention(name, layer, projected)
        hidden = self._linear(attended, self._pack(weights.load(f"{name}.o")), f"{name}/o", residual=hidden)
        gate_up = self._pack(interleaved(weights.load(f"{name}.gate"), weights.load(f"{name}.up")))
        inner = self._linear(hidden, gate_up, f"{name}/gated", norm=f"{name}.mlp_norm", gated=1)
        down = weights.load(f"{name}.down")
        # The gated layer's outputs are whole panels; those beyond the model's are zeros.
        width = gate_up.out_features // 2
        padded = np.zeros((down.shape[0], width), np.float32)
        padded[:, : down.shape[1]] = down
        return self._linear(inner, self._pack(padded), f"{name}/down", residual=hidden)

    def _attention(self, name: str, layer: int, qkv: str) -> str:
        config, nodes = self._config, self._nodes
        norms = ["", ""]
        if config.qk_norm:
            parts = (f"{name}.q_norm", f"{name}.k_norm")
            norms = [nodes.constant(part, self._weights.load(part)) for part in parts]
        return nodes.native(
            "MantlerAttention",
            [qkv, "kv_cache", "row_starts", "past_tokens", "block_table", "cos_cache", "sin_cache", *norms],
            f"{name}/attention",
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            layers=config.layers,
            layer=layer,
            window=config.sliding_window or 0,
            scale=config.head_dim**-0.5,
            epsilon=config.rms_eps,
        )

    def _linear(
        self,
        rows: str,
        weight: Packed,
        output: str,
        *,
        data: str = "",
        norm: str = "",
        bias: str = "",
        residual: str = "",
        gated: int = 0,
    ) -> str:
        nodes = self._nodes
        data = data or nodes.constant(f"{output}/weight", weight.data)
        if norm:
            nodes.constant(norm, self._weights.load(norm))
        return nodes.native(
            "MantlerLinear",
            [rows, data, norm, bias, residual],
            output,
            bits=weight.bits,
            out_features=weight.out_features,
            gated=gated,
            epsilon=self._config.rms_eps,
        )

    def _pack(self, weight: NDArray[np.float32]) -> Packed:
        return pack(weight, self._quantization)

    def _stacked(self, name: str, *parts: str) -> NDArray[np.float32]:
        return np.concatenate([self._weights.load(f"{name}.{part}") for part in parts])

    def _rope_caches(self) -> None:
        config = self._config
        positions = np.arange(config.context_length, dtype=np.float64)
        angles = np.outer(positions, np.array(config.rope_inv_freq, np.float64))
        scale = config.rope_attention_scale
        self._file.add("cos_cache", (np.cos(angles) * scale).astype(np.float32))
        self._file.add("sin_cache", (np.sin(angles) * scale).astype(np.float32))

    def _inputs(self) -> list[onnx.ValueInfoProto]:
        config = self._config
        long, short = TensorProto.INT64, TensorProto.INT32
        cache: list[str | int | None] = ["blocks", config.layers, config.kv_heads, 2, BLOCK_TOKENS * config.head_dim]
        return [
            helper.make_tensor_value_info("input_ids", long, ["T"]),
            helper.make_tensor_value_info("row_starts", short, ["B1"]),
            helper.make_tensor_value_info("past_tokens", short, ["B"]),
            helper.make_tensor_value_info("block_table", short, ["B", "W"]),
            helper.make_tensor_value_info("logit_rows", long, ["R"]),
            helper.make_tensor_value_info("kv_cache", TensorProto.UINT16, cache),
        ]

    def _outputs(self) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["R", self._config.vocab_size])]
