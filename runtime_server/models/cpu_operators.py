"""The decoder on the processor: the operators of ``runtime_server/native``.

Keys and values live in blocks of a shared cache, which attention finds by a table per sequence. Inputs, with T packed
tokens and B sequences:

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

import onnx
from onnx import TensorProto, helper

from runtime_server.models.cpu_format import BLOCK_TOKENS
from runtime_server.models.decoder import DecoderConfig, Weights
from runtime_server.models.linear import Packed, interleaved, pack
from runtime_server.models.nodes import Nodes
from runtime_server.models.operators import Weight, rotary_tables


class CpuOperators:
    """See :class:`runtime_server.models.operators.Operators`. Norms, biases, residuals and gates are fused."""

    def __init__(self, config: DecoderConfig, weights: Weights, nodes: Nodes, quantization: str) -> None:
        self._config = config
        self._weights = weights
        self._nodes = nodes
        self._quantization = quantization
        cos, sin = rotary_tables(config.rope_inv_freq, config.context_length, config.rope_attention_scale)
        nodes.constant("cos_cache", cos)
        nodes.constant("sin_cache", sin)

    def embedding(self, table: Weight) -> str:
        """See :class:`runtime_server.models.operators.Operators`."""
        self._embed = pack(table, self._quantization)
        return self._nodes.native(
            "MantlerEmbedding",
            ["input_ids", self._nodes.constant("embed", self._embed.data)],
            "embedding",
            bits=self._embed.bits,
            in_features=self._embed.in_features,
            out_features=self._embed.out_features,
        )

    def linear(
        self,
        rows: str,
        weight: Weight,
        output: str,
        *,
        norm: str = "",
        bias: Weight | None = None,
        residual: str = "",
    ) -> str:
        """See :class:`runtime_server.models.operators.Operators`."""
        added = "" if bias is None else self._nodes.constant(f"{output}/bias", bias)
        return self._product(rows, pack(weight, self._quantization), output, norm=norm, bias=added, residual=residual)

    def gated(self, rows: str, gate: Weight, up: Weight, output: str, *, norm: str) -> str:
        """See :class:`runtime_server.models.operators.Operators`."""
        return self._product(rows, pack(interleaved(gate, up), self._quantization), output, norm=norm, gated=1)

    def attention(self, qkv: str, name: str, layer: int) -> str:
        """See :class:`runtime_server.models.operators.Operators`."""
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

    def head(self, rows: str, weight: Weight | None, *, norm: str) -> None:
        """See :class:`runtime_server.models.operators.Operators`."""
        wanted = self._nodes.add("Gather", [rows, "logit_rows"], "wanted", axis=0)
        if weight is None:
            self._product(wanted, self._embed, "logits", data="embed", norm=norm)
        else:
            self._product(wanted, pack(weight, self._quantization), "logits", norm=norm)

    def inputs(self) -> list[onnx.ValueInfoProto]:
        """See :class:`runtime_server.models.operators.Operators`."""
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

    def outputs(self) -> list[onnx.ValueInfoProto]:
        """See :class:`runtime_server.models.operators.Operators`."""
        return [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["R", self._config.vocab_size])]

    def _product(
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
