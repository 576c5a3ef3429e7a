"""Builds the ONNX models of a llama-family decoder.

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

Quantisations (KL and top-1 agreement with fp32 for the default model are in ``docs/benchmarks.md``):

==============  ================================================================================================
``int8``        two models: one in blocks for decodes, one in rows and a rotated basis for prompts, which is twice as
                fast where there are many rows
``int8-block``  one model in blocks for both, with half the memory
``fp32``        one model as it is
==============  ================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from runtime_server.models.decoder import DecoderConfig, Weights
from runtime_server.models.linear import BlockInt8, Fp32, LinearFormat, RowInt8, Rows
from runtime_server.models.nodes import CONTRIB, Nodes
from runtime_server.models.quantizations import DEFAULT_QUANTIZATION
from runtime_server.models.quantize import BLOCK, block_int8
from runtime_server.models.rotation import RotatedWeights
from runtime_server.models.tensor_file import TensorFile

MODEL_FILE = "model.onnx"
PREFILL_FILE = "prefill.onnx"
"""Runs prompts where it is there; :data:`MODEL_FILE` runs everything else. Both use the same keys and values."""
OPSET = 21
IR_VERSION = 10

Progress = Callable[[int, int], None]
"""Called with bytes of fp32 weights converted so far, and in all."""


@dataclass(frozen=True, slots=True)
class _Part:
    """One ONNX model of a quantisation."""

    file: str
    linear: type[LinearFormat]
    rotated: bool = False


_PARTS: dict[str, tuple[_Part, ...]] = {
    "int8": (_Part(MODEL_FILE, BlockInt8), _Part(PREFILL_FILE, RowInt8, rotated=True)),
    "int8-block": (_Part(MODEL_FILE, BlockInt8),),
    "fp32": (_Part(MODEL_FILE, Fp32),),
}


def build(
    config: DecoderConfig,
    weights: Weights,
    folder: Path,
    *,
    quantization: str = DEFAULT_QUANTIZATION,
    progress: Progress = lambda done, total: None,
) -> None:
    """Writes the models of ``quantization`` into ``folder``, each with its weights in a file beside it.

    Raises ``ValueError`` for an unknown quantisation, ``KeyError`` for a weight that is not there, and ``OSError``
    where the disk does not take it.
    """
    if quantization not in _PARTS:
        raise ValueError(f"quantization must be one of {', '.join(_PARTS)}, got {quantization!r}")
    size, total = 4 * parameter_count(config), work_bytes(config, quantization)
    for number, part in enumerate(_PARTS[quantization]):
        counted = _Counted(weights, partial(_report, progress, size * number, size, total))
        _write(config, counted, folder, part)
    progress(total, total)


def _report(progress: Progress, before: int, size: int, total: int, loaded: int) -> None:
    progress(before + min(loaded, size), total)


def _write(config: DecoderConfig, weights: Weights, folder: Path, part: _Part) -> None:
    if part.rotated:
        weights = RotatedWeights(config, weights)
        config = weights.config
    path = folder / part.file
    with TensorFile(path.with_suffix(".bin")) as file:
        graph = _Decoder(config, weights, file, part.linear()).build()
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="mantler"), path)


def work_bytes(config: DecoderConfig, quantization: str) -> int:
    """Bytes of fp32 weights that :func:`build` goes through."""
    return 4 * parameter_count(config) * len(_PARTS[quantization])


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
    """Adds the nodes of one model. Methods return the name of the value that they add."""

    def __init__(self, config: DecoderConfig, weights: Weights, file: TensorFile, linear: LinearFormat) -> None:
        self._config = config
        self._weights = weights
        self._file = file
        self._linear = linear
        self._nodes = Nodes(file)

    def build(self) -> onnx.GraphProto:
        config = self._config
        self._rope_caches()
        hidden = self._embedding()
        residual = ""
        for layer in range(config.layers):
            hidden, residual = self._layer(f"layers.{layer}", layer, hidden, residual)
        normed, _ = self._norm("final_norm", hidden, residual)
        wanted = self._nodes.add("Gather", [normed, "logit_rows"], "wanted", axis=0)
        rows = self._linear.prepare(self._nodes, wanted, Rows.NORMED, config.hidden)
        self._linear.apply(self._nodes, rows, "logits", self._weights.load(self._lm_head))
        return helper.make_graph(self._nodes.list, "decoder", self._inputs(), self._outputs(), self._file.tensors)

    @property
    def _lm_head(self) -> str:
        return "embed" if self._config.tied_embeddings else "lm_head"

    def _layer(self, name: str, layer: int, hidden: str, residual: str) -> tuple[str, str]:
        nodes, linear, config = self._nodes, self._linear, self._config
        normed, residual = self._norm(f"{name}.attn_norm", hidden, residual)
        rows = linear.prepare(nodes, normed, Rows.NORMED, config.hidden)
        qkv = linear.apply(nodes, rows, f"{name}/qkv", self._stacked(name, "q", "k", "v"))
        attended = self._attention(name, layer, self._qkv_extras(name, qkv))
        rows = linear.prepare(nodes, attended, Rows.ATTENTION, config.heads * config.head_dim)
        projected = linear.apply(nodes, rows, f"{name}/o", self._weights.load(f"{name}.o"))
        normed, residual = self._norm(f"{name}.mlp_norm", projected, residual)
        return self._mlp(name, normed), residual

    def _qkv_extras(self, name: str, qkv: str) -> str:
        if self._config.qkv_bias:
            bias = self._nodes.constant(f"{name}.qkv_bias", self._stacked(name, "q_bias", "k_bias", "v_bias"))
            qkv = self._nodes.add("Add", [qkv, bias], f"{name}/qkv_biased")
        return self._qk_norm(name, qkv) if self._config.qk_norm else qkv

    def _attention(self, name: str, layer: int, qkv: str) -> str:
        config, nodes = self._config, self._nodes
        rectangle = nodes.add("Gather", [qkv, "query_rows"], f"{name}/rectangle", axis=0)
        past = [f"past_key.{layer}", f"past_value.{layer}"]
        present = [f"present_key.{layer}", f"present_value.{layer}"]
        lengths = ["seqlens_k", "total_sequence_length"]
        output = nodes.add(
            "GroupQueryAttention",
            # The inputs between the rotary caches and query_seqlens are options that stay unused.
            [rectangle, "", "", *past, *lengths, "cos_cache", "sin_cache", *[""] * 7, "query_seqlens"],
            f"{name}/attention",
            *present,
            domain=CONTRIB,
            num_heads=config.heads,
            kv_num_heads=config.kv_heads,
            do_rotary=1,
            # Both count the keys that a query sees, its own included.
            local_window_size=-1 if config.sliding_window is None else config.sliding_window,
        )
        shape = nodes.shared("row_shape", [-1, config.heads * config.head_dim], np.int64)
        flat = nodes.add("Reshape", [output, shape], f"{name}/flat")
        return nodes.add("Gather", [flat, "packed_rows"], f"{name}/packed", axis=0)

    def _qk_norm(self, name: str, qkv: str) -> str:
        """RMS norm over each head of q and k. GroupQueryAttention's own is not there on CPU."""
        config, nodes = self._config, self._nodes
        heads = {"q": config.heads, "k": config.kv_heads, "v": config.kv_heads}
        widths = nodes.shared("qkv_widths", [count * config.head_dim for count in heads.values()], np.int64)
        parts = {part: f"{name}/split_{part}" for part in heads}
        nodes.add("Split", [qkv, widths], *parts.values(), axis=1)
        for part in ("q", "k"):
            by_head = nodes.shared(f"{part}_by_head", [-1, heads[part], config.head_dim], np.int64)
            by_row = nodes.shared(f"{part}_by_row", [-1, heads[part] * config.head_dim], np.int64)
            grouped = nodes.add("Reshape", [parts[part], by_head], f"{name}/{part}_by_head")
            scaled, _ = self._norm(f"{name}.{part}_norm", grouped, "")
            parts[part] = nodes.add("Reshape", [scaled, by_row], f"{name}/{part}_normed")
        return nodes.add("Concat", list(parts.values()), f"{name}/qkv_normed", axis=1)

    def _mlp(self, name: str, normed: str) -> str:
        nodes, linear, config = self._nodes, self._linear, self._config
        rows = linear.prepare(nodes, normed, Rows.NORMED, config.hidden)
        gate = linear.apply(nodes, rows, f"{name}/gate", self._weights.load(f"{name}.gate"))
        up = linear.apply(nodes, rows, f"{name}/up", self._weights.load(f"{name}.up"))
        # x * sigmoid(x), which is SiLU, is QuickGelu with alpha 1.
        activated = nodes.add("QuickGelu", [gate], f"{name}/silu", domain=CONTRIB, alpha=1.0)
        gated = nodes.add("Mul", [activated, up], f"{name}/gated")
        inner = linear.prepare(nodes, gated, Rows.GATED, config.intermediate)
        return linear.apply(nodes, inner, f"{name}/down", self._weights.load(f"{name}.down"))

    def _norm(self, weight_name: str, hidden: str, residual: str) -> tuple[str, str]:
        """RMS norm of ``hidden + residual``. Returns the result and the sum."""
        nodes, epsilon = self._nodes, self._config.rms_eps
        weight = nodes.constant(weight_name, self._weights.load(weight_name))
        output, total = f"{weight_name}/out", f"{weight_name}/sum"
        if not residual:
            nodes.add("SimplifiedLayerNormalization", [hidden, weight], output, axis=-1, epsilon=epsilon)
            return output, hidden
        inputs, unused = [hidden, residual, weight], ("", "")
        op = "SkipSimplifiedLayerNormalization"
        nodes.add(op, inputs, output, *unused, total, domain=CONTRIB, epsilon=epsilon)
        return output, total

    def _embedding(self) -> str:
        table, nodes = self._weights.load("embed"), self._nodes
        if isinstance(self._linear, Fp32):
            return nodes.add("Gather", [nodes.constant("embed", table), "input_ids"], "embedding", axis=0)
        packed = block_int8(table)
        values = nodes.constant("embed", packed.values.reshape(len(table), -1)[:, : table.shape[1]])
        scales = nodes.constant("embed_scales", packed.scales)
        attributes = {"bits": 8, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
        return nodes.add(
            "GatherBlockQuantized", [values, "input_ids", scales], "embedding", domain=CONTRIB, **attributes
        )

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
