"""Builds the ONNX model of a llama-family decoder.

The graph works on *packed* rows: the tokens of all sequences in one step stand one after the other, and every
linear layer sees exactly these rows. Only attention needs a rectangle of sequences × tokens; there the rows are
gathered into it and back. Inputs, with T packed tokens, B sequences, S tokens in the longest chunk and C tokens of
cache per sequence:

=========================  ===================  ======================================================
``input_ids``              int64 ``[T]``        token ids
``query_rows``             int64 ``[B, S]``     packed row of each place of the rectangle; padding names any row
``packed_rows``            int64 ``[T]``        place in the flattened rectangle of each packed row
``seqlens_k``              int32 ``[B]``        tokens in the cache after this step, minus one
``query_seqlens``          int32 ``[B]``        tokens of this step; 0 leaves the sequence alone
``total_sequence_length``  int32 ``[]``         an upper bound of the tokens in any cache
``logit_rows``             int64 ``[R]``        packed rows whose logits are wanted
``past_key.N``, …value.N   fp32 ``[B, kv_heads, C, head_dim]``, bound to the same memory as ``present_key.N``
=========================  ===================  ======================================================

Output ``logits`` is fp32 ``[R, vocab_size]``. The contrib operators are described in ONNX Runtime's
``ContribOperators.md``; ``GroupQueryAttention`` with ``query_seqlens`` needs ONNX Runtime 1.32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from runtime_server.models.decoder import DecoderConfig, Weights
from runtime_server.models.quantize import BLOCK, QUANTIZATIONS, block_int8
from runtime_server.models.tensor_file import TensorFile

MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "weights.bin"
OPSET = 21
CONTRIB = "com.microsoft"
IR_VERSION = 10

Progress = Callable[[int, int], None]
"""Called with bytes of fp32 weights converted so far, and in all."""


def build(
    config: DecoderConfig,
    weights: Weights,
    folder: Path,
    *,
    quantization: str = "int8",
    progress: Progress = lambda done, total: None,
) -> None:
    """Writes :data:`MODEL_FILE` and :data:`WEIGHTS_FILE` into ``folder``.

    Raises ``ValueError`` for an unknown quantisation or a weight of the wrong shape, ``KeyError`` for a weight that
    is not there, and ``OSError`` where the disk does not take it.
    """
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"quantization must be one of {', '.join(QUANTIZATIONS)}, got {quantization!r}")
    with TensorFile(folder / WEIGHTS_FILE) as file:
        graph = _GraphBuilder(config, weights, file, quantization, progress).build()
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="mantler")
    onnx.save(model, folder / MODEL_FILE)


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


class _GraphBuilder:
    """Collects the nodes of one model. Methods that add a node return the name of its first output."""

    def __init__(
        self, config: DecoderConfig, weights: Weights, file: TensorFile, quantization: str, progress: Progress
    ) -> None:
        self._config = config
        self._weights = weights
        self._file = file
        self._quantized = quantization == "int8"
        self._progress = progress
        self._nodes: list[onnx.NodeProto] = []
        self._done = 0
        self._total = 4 * parameter_count(config)

    def build(self) -> onnx.GraphProto:
        config = self._config
        self._file.add("row_shape", np.array([-1, config.heads * config.head_dim], np.int64))
        self._rope_caches()
        hidden = self._embedding()
        residual = ""
        for layer in range(config.layers):
            hidden, residual = self._layer(f"layers.{layer}", layer, hidden, residual)
        normed, _ = self._norm("final_norm", hidden, residual)
        rows = self._node("Gather", [normed, "logit_rows"], "final/rows", axis=0)
        self._lm_head(rows)
        return helper.make_graph(self._nodes, "decoder", self._inputs(), self._outputs(), self._file.tensors)

    def _layer(self, name: str, layer: int, hidden: str, residual: str) -> tuple[str, str]:
        normed, residual = self._norm(f"{name}.attn_norm", hidden, residual)
        attended = self._attention(name, layer, normed)
        projected = self._linear(attended, f"{name}/o", self._weight(f"{name}.o"))
        normed, residual = self._norm(f"{name}.mlp_norm", projected, residual)
        return self._mlp(name, normed), residual

    def _attention(self, name: str, layer: int, normed: str) -> str:
        config = self._config
        widths = [config.heads * config.head_dim, config.kv_heads * config.head_dim, config.kv_heads * config.head_dim]
        parts = [f"{name}.{part}" for part in ("q", "k", "v")]
        qkv = self._linear(normed, f"{name}/qkv", np.concatenate([self._weight(part) for part in parts]))
        if config.qkv_bias:
            bias = np.concatenate([self._weight(f"{part}_bias") for part in parts])
            qkv = self._node("Add", [qkv, self._file.add(f"{name}.qkv_bias", bias)], f"{name}/qkv_biased")
        if config.qk_norm:
            qkv = self._qk_norm(name, qkv, widths)
        rectangle = self._node("Gather", [qkv, "query_rows"], f"{name}/rectangle", axis=0)
        past = [f"past_key.{layer}", f"past_value.{layer}"]
        present = [f"present_key.{layer}", f"present_value.{layer}"]
        lengths = ["seqlens_k", "total_sequence_length"]
        # Unnamed inputs between the rotary caches and query_seqlens are options that stay unused.
        inputs = [rectangle, "", "", *past, *lengths, "cos_cache", "sin_cache", *[""] * 7, "query_seqlens"]
        output = f"{name}/attention"
        self._nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                inputs,
                [output, *present],
                name=output,
                domain=CONTRIB,
                num_heads=config.heads,
                kv_num_heads=config.kv_heads,
                do_rotary=1,
                # Both count the keys that a query sees, its own included.
                local_window_size=-1 if config.sliding_window is None else config.sliding_window,
            )
        )
        flat = self._node("Reshape", [output, "row_shape"], f"{name}/flat")
        return self._node("Gather", [flat, "packed_rows"], f"{name}/packed", axis=0)

    def _qk_norm(self, name: str, qkv: str, widths: list[int]) -> str:
        """RMS norm over each head of q and k. GroupQueryAttention's own is not there on CPU."""
        splits = self._file.add(f"{name}.qkv_splits", np.array(widths, np.int64))
        parts = [f"{name}/split_{part}" for part in ("q", "k", "v")]
        self._nodes.append(helper.make_node("Split", [qkv, splits], parts, name=f"{name}/split", axis=1))
        normed = []
        for part, heads in (("q", self._config.heads), ("k", self._config.kv_heads)):
            by_head = self._file.add(f"{name}.{part}_by_head", np.array([-1, heads, self._config.head_dim], np.int64))
            by_row = self._file.add(f"{name}.{part}_by_row", np.array([-1, heads * self._config.head_dim], np.int64))
            grouped = self._node("Reshape", [f"{name}/split_{part}", by_head], f"{name}/{part}_by_head")
            scaled, _ = self._norm(f"{name}.{part}_norm", grouped, "")
            normed.append(self._node("Reshape", [scaled, by_row], f"{name}/{part}_normed"))
        return self._node("Concat", [*normed, parts[2]], f"{name}/qkv_normed", axis=1)

    def _mlp(self, name: str, normed: str) -> str:
        gate_up = np.concatenate([self._weight(f"{name}.gate"), self._weight(f"{name}.up")])
        both = self._linear(normed, f"{name}/gate_up", gate_up)
        gate, up = f"{name}/gate", f"{name}/up"
        self._nodes.append(helper.make_node("Split", [both], [gate, up], name=f"{name}/halves", axis=1, num_outputs=2))
        # x * sigmoid(x), which is SiLU, is QuickGelu with alpha 1.
        activated = self._node("QuickGelu", [gate], f"{name}/silu", domain=CONTRIB, alpha=1.0)
        gated = self._node("Mul", [activated, up], f"{name}/gated")
        return self._linear(gated, f"{name}/down", self._weight(f"{name}.down"))

    def _norm(self, weight_name: str, hidden: str, residual: str) -> tuple[str, str]:
        """RMS norm of ``hidden + residual``. Returns the result and the sum."""
        weight = self._file.add(weight_name, self._weight(weight_name))
        output, total = f"{weight_name}/out", f"{weight_name}/sum"
        if not residual:
            self._node("SimplifiedLayerNormalization", [hidden, weight], output, axis=-1, epsilon=self._config.rms_eps)
            return output, hidden
        self._nodes.append(
            helper.make_node(
                "SkipSimplifiedLayerNormalization",
                [hidden, residual, weight],
                [output, "", "", total],
                name=output,
                domain=CONTRIB,
                epsilon=self._config.rms_eps,
            )
        )
        return output, total

    def _embedding(self) -> str:
        table = self._weight("embed")
        self._check_width("embed", table, self._config.hidden)
        if not self._quantized:
            return self._node("Gather", [self._file.add("embed", table), "input_ids"], "embedding", axis=0)
        packed = block_int8(table)
        values = self._file.add("embed", packed.values.reshape(len(table), -1)[:, : table.shape[1]])
        return self._node(
            "GatherBlockQuantized",
            [values, "input_ids", self._file.add("embed_scales", packed.scales)],
            "embedding",
            domain=CONTRIB,
            bits=8,
            block_size=BLOCK,
            gather_axis=0,
            quantize_axis=1,
        )

    def _lm_head(self, rows: str) -> str:
        # The embedding's own initializer cannot serve here: MatMulNBits wants it in blocks, MatMul transposed.
        weight = self._weights.load("embed") if self._config.tied_embeddings else self._weight("lm_head")
        return self._linear(rows, "logits", weight)

    def _linear(self, rows: str, output: str, weight: NDArray[np.float32]) -> str:
        """``rows [T, in]`` times the transpose of ``weight [out, in]``."""
        if not self._quantized:
            return self._node("MatMul", [rows, self._file.add(f"{output}/weight", weight.T)], output)
        packed = block_int8(weight)
        values = self._file.add(f"{output}/weight", packed.values)
        scales = self._file.add(f"{output}/scales", packed.scales)
        return self._node(
            "MatMulNBits",
            [rows, values, scales],
            output,
            domain=CONTRIB,
            N=weight.shape[0],
            K=weight.shape[1],
            bits=8,
            block_size=BLOCK,
            accuracy_level=4,
        )

    def _rope_caches(self) -> None:
        config = self._config
        positions = np.arange(config.context_length, dtype=np.float64)
        angles = np.outer(positions, np.array(config.rope_inv_freq, np.float64))
        scale = config.rope_attention_scale
        self._file.add("cos_cache", (np.cos(angles) * scale).astype(np.float32))
        self._file.add("sin_cache", (np.sin(angles) * scale).astype(np.float32))

    def _inputs(self) -> list[onnx.ValueInfoProto]:
        long, short = TensorProto.INT64, TensorProto.INT32
        shapes: list[tuple[str, int, Sequence[str]]] = [
            ("input_ids", long, ["T"]),
            ("query_rows", long, ["B", "S"]),
            ("packed_rows", long, ["T"]),
            ("seqlens_k", short, ["B"]),
            ("query_seqlens", short, ["B"]),
            ("total_sequence_length", short, []),
            ("logit_rows", long, ["R"]),
        ]
        inputs = [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in shapes]
        return inputs + self._caches("past")

    def _outputs(self) -> list[onnx.ValueInfoProto]:
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["R", self._config.vocab_size])
        return [logits, *self._caches("present")]

    def _caches(self, when: str) -> list[onnx.ValueInfoProto]:
        shape: list[str | int | None] = ["B", self._config.kv_heads, "C", self._config.head_dim]
        return [
            helper.make_tensor_value_info(f"{when}_{kind}.{layer}", TensorProto.FLOAT, shape)
            for layer in range(self._config.layers)
            for kind in ("key", "value")
        ]

    def _node(self, op: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> str:
        self._nodes.append(helper.make_node(op, inputs, [output], name=output, domain=domain, **attributes))
        return output

    def _weight(self, name: str) -> NDArray[np.float32]:
        weight = self._weights.load(name)
        self._done += weight.nbytes
        self._progress(self._done, self._total)
        return weight

    @staticmethod
    def _check_width(name: str, weight: NDArray[np.float32], width: int) -> None:
        if weight.shape[-1] != width:
            raise ValueError(f"{name} has rows of {weight.shape[-1]} values where the configuration says {width}")
