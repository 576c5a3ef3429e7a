"""The decoder on a CUDA card: bf16, with ONNX Runtime's paged attention.

A step runs chunks of prompts and decodes together. Its whole numbers are inputs of their own, so that the backend can
lay them into one buffer and upload that once. Inputs, with T packed tokens, B sequences, R wanted rows, and P places
for the tokens that the step before it drew:

====================  ==============  =====================================================================
``tokens``            int32 ``[T]``   token ids
``previous_tokens``   int32 ``[P]``   what the step before drew, likeliest token first row first; on the card
``token_places``      int32 ``[T]``   where each token stands in ``previous_tokens`` followed by ``tokens``
``row_starts``        int32 ``[B+1]`` first packed row of each sequence, and T
``past_tokens``       int32 ``[B]``   tokens in the cache before this step
``block_table``       int32 ``[B,W]`` the sequence's blocks; places after its last one are not read
``logit_rows``        int32 ``[R]``   packed rows whose logits are wanted
``attention_bounds``  int32 ``[3]``   in the processor's memory: no sequence adds more tokens than the first, none has
                                      more after the step than the second, and one has the third at least
``key_cache.N``       bf16            ``[blocks, block_tokens, kv_heads, head_dim]`` of layer N, written in place
``value_cache.N``     bf16            likewise
====================  ==============  =====================================================================

Outputs: ``sampled`` int32 ``[R]``, the likeliest token of each wanted row; ``top_ids`` int64 and ``top_values`` fp32
``[R, TOP]``, the likeliest ones; ``logsumexp`` fp32 ``[R, 1]`` over all; ``logits`` fp32 ``[R, vocab_size]``, for the
rows that need them all.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from runtime_server.models.cuda_format import GROUP, block_tokens, quantizable, top_count
from runtime_server.models.decoder import DecoderConfig, Weights
from runtime_server.models.nodes import CONTRIB, Nodes
from runtime_server.models.operators import Weight, rotary_tables

BF16 = np.dtype(ml_dtypes.bfloat16)


class CudaOperators:
    """See :class:`runtime_server.models.operators.Operators`.

    The sum with a residual is left to the norm after it, which adds and normalises in one pass and hands out both.
    """

    def __init__(self, config: DecoderConfig, weights: Weights, nodes: Nodes, quantization: str) -> None:
        self._config = config
        self._weights = weights
        self._nodes = nodes
        self._quantized = quantization == "int4"
        self._products: dict[str, tuple[str, str]] = {}
        """Sums that no node has made yet: the residual and the product."""
        cos, sin = rotary_tables(config.rope_inv_freq, config.context_length, config.rope_attention_scale)
        nodes.constant("cos_cache", cos.astype(BF16))
        nodes.constant("sin_cache", sin.astype(BF16))

    def embedding(self, table: Weight) -> str:
        """See :class:`runtime_server.models.operators.Operators`."""
        nodes = self._nodes
        known = nodes.add("Concat", ["previous_tokens", "tokens"], "known_tokens", axis=0)
        token_ids = nodes.add("Gather", [known, "token_places"], "token_ids", axis=0)
        return nodes.add("Gather", [nodes.constant("embed", table.astype(BF16)), token_ids], "embedding", axis=0)

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
        normed = self._norm(rows, norm) if norm else rows
        if not residual:
            return self._product(normed, weight, output, bias)
        self._products[output] = residual, self._product(normed, weight, f"{output}/product", bias)
        return output

    def gated(self, rows: str, gate: Weight, up: Weight, output: str, *, norm: str) -> str:
        """See :class:`runtime_server.models.operators.Operators`."""
        nodes = self._nodes
        both = self._product(self._norm(rows, norm), np.concatenate([gate, up]), f"{output}/gate_up", None)
        parts = [f"{output}/gate", f"{output}/up"]
        nodes.add_many("Split", [both], parts, axis=1, num_outputs=2)
        # With alpha 1 it is silu.
        active = nodes.add("QuickGelu", parts[:1], f"{output}/silu", domain=CONTRIB, alpha=1.0)
        return nodes.add("Mul", [active, parts[1]], output)

    def attention(self, qkv: str, name: str, layer: int) -> str:
        """See :class:`runtime_server.models.operators.Operators`."""
        config, nodes = self._config, self._nodes
        absent = ""
        norms = [self._constant(f"{name}.{part}_norm") if config.qk_norm else absent for part in ("q", "k")]
        inputs = [qkv, absent, absent, f"key_cache.{layer}", f"value_cache.{layer}"]
        inputs += ["row_starts", "past_tokens", "block_table", "cos_cache", "sin_cache"]
        inputs += [absent, absent, *norms, absent, absent, "attention_bounds"]
        return nodes.add(
            "PagedAttention",
            inputs,
            f"{name}/attention",
            domain=CONTRIB,
            num_heads=config.heads,
            kv_num_heads=config.kv_heads,
            do_rotary=1,
            scale=config.head_dim**-0.5,
            local_window_size=config.sliding_window or -1,
            qk_norm_epsilon=config.rms_eps,
        )

    def head(self, rows: str, weight: Weight | None, *, norm: str) -> None:
        """See :class:`runtime_server.models.operators.Operators`."""
        nodes = self._nodes
        residual, product = self._products[rows]
        parts = [
            nodes.add("Gather", [part, "logit_rows"], f"wanted/{kind}", axis=0)
            for kind, part in (("residual", residual), ("product", product))
        ]
        self._products["wanted"] = parts[0], parts[1]
        normed = self._norm("wanted", norm)
        table = "embed" if weight is None else nodes.constant("lm_head", weight.astype(BF16))
        small = nodes.add("Gemm", [normed, table], "logits/bf16", transB=1)
        logits = nodes.add("Cast", [small], "logits", to=TensorProto.FLOAT)
        self._likeliest(logits)

    def inputs(self) -> list[onnx.ValueInfoProto]:
        """See :class:`runtime_server.models.operators.Operators`."""
        config = self._config
        shapes: dict[str, list[str | int | None]] = {
            "tokens": ["T"],
            "previous_tokens": ["P"],
            "token_places": ["T"],
            "row_starts": ["B1"],
            "past_tokens": ["B"],
            "block_table": ["B", "W"],
            "logit_rows": ["R"],
            "attention_bounds": [3],
        }
        found = [helper.make_tensor_value_info(name, TensorProto.INT32, shape) for name, shape in shapes.items()]
        cache: list[str | int | None] = ["blocks", block_tokens(config.head_dim), config.kv_heads, config.head_dim]
        caches = [f"{kind}_cache.{layer}" for layer in range(config.layers) for kind in ("key", "value")]
        kind = helper.np_dtype_to_tensor_dtype(BF16)
        return [*found, *(helper.make_tensor_value_info(name, kind, cache) for name in caches)]

    def outputs(self) -> list[onnx.ValueInfoProto]:
        """See :class:`runtime_server.models.operators.Operators`."""
        config = self._config
        top = top_count(config)
        return [
            helper.make_tensor_value_info("sampled", TensorProto.INT32, ["R"]),
            helper.make_tensor_value_info("top_ids", TensorProto.INT64, ["R", top]),
            helper.make_tensor_value_info("top_values", TensorProto.FLOAT, ["R", top]),
            helper.make_tensor_value_info("logsumexp", TensorProto.FLOAT, ["R", 1]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["R", config.vocab_size]),
        ]

    def _likeliest(self, logits: str) -> None:
        nodes = self._nodes
        count = nodes.constant("top", np.array([top_count(self._config)], np.int64))
        nodes.add_many("TopK", [logits, count], ["top_values", "top_ids"], axis=-1, largest=1, sorted=1)
        best = nodes.add("Gather", ["top_ids", nodes.constant("first", np.array(0, np.int64))], "best", axis=1)
        nodes.add("Cast", [best], "sampled", to=TensorProto.INT32)
        # The greatest is known, so that one sum is all that needs every logit.
        first_column, last_axis = np.array([0], np.int64), np.array([1], np.int64)
        peak = nodes.add("Gather", ["top_values", nodes.constant("first_column", first_column)], "peak", axis=1)
        shares = nodes.add("Exp", [nodes.add("Sub", [logits, peak], "below_peak")], "shares")
        mass = nodes.add("ReduceSum", [shares, nodes.constant("last_axis", last_axis)], "mass", keepdims=1)
        nodes.add("Add", [peak, nodes.add("Log", [mass], "log_mass")], "logsumexp")

    def _norm(self, rows: str, name: str) -> str:
        gain, normed = self._constant(name), f"{name}/normed"
        epsilon = self._config.rms_eps
        if rows not in self._products:
            return self._nodes.add("SimplifiedLayerNormalization", [rows, gain], normed, axis=-1, epsilon=epsilon)
        residual, product = self._products.pop(rows)
        outputs = [normed, "", "", rows]
        op = "SkipSimplifiedLayerNormalization"
        self._nodes.add_many(op, [product, residual, gain], outputs, domain=CONTRIB, epsilon=epsilon)
        return normed

    def _product(self, rows: str, weight: Weight, output: str, bias: Weight | None) -> str:
        nodes = self._nodes
        added = [] if bias is None else [nodes.constant(f"{output}/bias", bias.astype(BF16))]
        if not self._quantized or not quantizable(weight.shape):
            table = nodes.constant(f"{output}/weight", weight.astype(BF16))
            return nodes.add("Gemm", [rows, table, *added], output, transB=1)
        values, scales = four_bits(weight)
        inputs = [rows, nodes.constant(f"{output}/weight", values), nodes.constant(f"{output}/scales", scales)]
        # The mixed GEMM takes no bias.
        product = f"{output}/unbiased" if added else output
        sizes = {"N": weight.shape[0], "K": weight.shape[1], "bits": 4, "block_size": GROUP}
        nodes.add("MatMulNBits", inputs, product, domain=CONTRIB, **sizes)
        return nodes.add("Add", [product, *added], output) if added else output

    def _constant(self, name: str) -> str:
        return self._nodes.constant(name, self._weights.load(name).astype(BF16))


def four_bits(weight: Weight) -> tuple[NDArray[np.uint8], NDArray[np.generic]]:
    """Whole numbers 0 to 15 that stand for -8 to 7 times their group's scale, as GGUF's ``Q4_0`` has it.

    Args:
        weight: ``[outputs, inputs]``, whose inputs are whole groups.

    Returns:
        Pairs of numbers ``uint8 [outputs, groups, GROUP / 2]``, the earlier one in the low bits, and scales
        ``bf16 [outputs, groups]``: what ``MatMulNBits`` takes.
    """
    outputs, inputs = weight.shape
    groups = weight.reshape(outputs, inputs // GROUP, GROUP)
    furthest = np.take_along_axis(groups, np.abs(groups).argmax(axis=-1, keepdims=True), axis=-1)
    scales = (furthest / np.float32(-8)).astype(BF16)
    divisors = np.where(scales == 0, np.float32(1), scales.astype(np.float32))
    values = (np.clip(np.rint(groups / divisors), -8, 7) + 8).astype(np.uint8)
    return values[..., 0::2] | values[..., 1::2] << np.uint8(4), scales[..., 0]
