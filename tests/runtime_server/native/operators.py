"""One operator in a graph of its own, and what it computes in numpy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnxruntime as ort
from ml_dtypes import bfloat16
from numpy.typing import NDArray
from onnx import TensorProto, helper

from runtime_server import native
from runtime_server.backends import cpu
from runtime_server.models.cpu_format import BLOCK_TOKENS
from runtime_server.models.graph import IR_VERSION, OPSET
from runtime_server.models.linear import Packed, interleaved, pack
from runtime_server.models.nodes import NATIVE

Floats = NDArray[np.float32]
Feed = dict[str, NDArray[Any] | None]

EPSILON = 1e-5
_TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.uint16): TensorProto.UINT16,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.int32): TensorProto.INT32,
    np.dtype(np.int64): TensorProto.INT64,
}


def session(op: str, feed: Feed, **attributes: Any) -> ort.InferenceSession:
    """A graph of one operator with the inputs of ``feed``, in their order; ``None`` is an input that is left out."""
    names = [name if value is not None else "" for name, value in feed.items()]
    inputs = [
        helper.make_tensor_value_info(name, _TYPES[value.dtype], [f"{name}{i}" for i in range(value.ndim)])
        for name, value in feed.items()
        if value is not None
    ]
    output = helper.make_tensor_value_info("result", TensorProto.FLOAT, ["rows", "columns"])
    node = helper.make_node(op, names, ["result"], domain=NATIVE, **attributes)
    graph = helper.make_graph([node], "one", inputs, [output])
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(NATIVE, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    cpu._start_threads(2)  # as the backend's sessions in this process
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.use_per_session_threads = False
    options.register_custom_ops_library(str(native.library()))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(op: str, feed: Feed, **attributes: Any) -> Floats:
    """What the operator makes of ``feed``."""
    given = {name: value for name, value in feed.items() if value is not None}
    result: Floats = session(op, feed, **attributes).run(None, given)[0]
    return result


def four_bit_weight(random: np.random.Generator, outputs: int, inputs: int) -> Floats:
    """A weight that was published with 4 bits and an offset; its columns are padded with zeros."""
    blocks = -(-inputs // 32)
    shape = (outputs, blocks, 1)
    d = random.uniform(0.01, 0.1, shape).astype(np.float16).astype(np.float32)
    q = random.integers(0, 16, (outputs, blocks, 32)).astype(np.float32)
    # Both ends of the range are there, and zero is a level.
    q[..., 0], q[..., 1] = 0, 15
    weight: Floats = (d * q - 8 * d).reshape(outputs, -1)[:, :inputs]
    return weight


@dataclass(frozen=True)
class Linear:
    """A linear layer with all that may come with it."""

    weight: Floats
    """``[outputs, inputs]``; of ``gate`` and ``up`` in turns with ``gated``, as they are packed."""
    packed: Packed
    norm: Floats | None = None
    bias: Floats | None = None
    gated: bool = False

    @classmethod
    def random(
        cls,
        bits: int,
        outputs: int,
        inputs: int,
        *,
        norm: bool = False,
        bias: bool = False,
        gated: bool = False,
        seed: int = 0,
    ) -> Linear:
        """``outputs`` counts those that are left after gating."""
        random = np.random.default_rng([seed, bits, outputs, inputs])

        def matrix() -> Floats:
            if bits == 4:
                return four_bit_weight(random, outputs, inputs)
            return random.standard_normal((outputs, inputs)).astype(np.float32)

        weight = interleaved(matrix(), matrix()) if gated else matrix()
        packed = pack(weight, "fp32" if bits == 32 else "int8")
        assert packed.bits == bits
        return cls(
            weight,
            packed,
            random.uniform(0.5, 1.5, inputs).astype(np.float32) if norm else None,
            random.standard_normal(outputs).astype(np.float32) if bias else None,
            gated,
        )

    @property
    def attributes(self) -> dict[str, Any]:
        features = self.packed.out_features
        return {"bits": self.packed.bits, "out_features": features, "gated": int(self.gated), "epsilon": EPSILON}

    def feed(self, rows: Floats, residual: Floats | None = None) -> Feed:
        return {"x": rows, "weight": self.packed.data, "norm": self.norm, "bias": self.bias, "residual": residual}

    def run(self, rows: Floats, residual: Floats | None = None) -> Floats:
        return run("MantlerLinear", self.feed(rows, residual), **self.attributes)

    def expected(self, rows: Floats, residual: Floats | None = None) -> NDArray[np.float64]:
        """The definition in float64, over rows and weights that are rounded as the kernels round them."""
        x = rows.astype(np.float64)
        if self.norm is not None:
            x = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + EPSILON) * self.norm
        weight = self.weight.astype(np.float64)
        if self.packed.bits != 32:
            x = _rounded(x, 127)
        if self.packed.bits == 8:
            weight = _rounded(weight, 127, np.float16)
        sums = x @ weight.T
        if self.gated:
            panels = sums.reshape(len(rows), -1, 2, 16)
            gate, up = panels[:, :, 0], panels[:, :, 1]
            sums = (gate / (1 + np.exp(-gate)) * up).reshape(len(rows), -1)
        if self.bias is not None:
            sums = sums + self.bias
        result: NDArray[np.float64] = sums if residual is None else sums + residual
        return result


def _rounded(values: NDArray[np.float64], levels: int, scale_type: type = np.float32) -> NDArray[np.float64]:
    """Blocks of 32 columns, each rounded to whole multiples of a scale of its own."""
    rows, columns = values.shape
    padded = np.pad(values, ((0, 0), (0, -columns % 32))).reshape(rows, -1, 32)
    scales = (np.abs(padded).max(axis=-1, keepdims=True) / levels).astype(scale_type).astype(np.float64)
    scales[scales == 0] = 1
    result: NDArray[np.float64] = (np.rint(padded / scales) * scales).reshape(rows, -1)[:, :columns]
    return result


@dataclass(frozen=True)
class Heads:
    """The shape of an attention layer."""

    heads: int
    kv_heads: int
    head_dim: int
    layers: int = 2
    layer: int = 1
    window: int = 0
    norms: bool = False

    @property
    def attributes(self) -> dict[str, Any]:
        names = ("heads", "kv_heads", "head_dim", "layers", "layer", "window")
        return {name: getattr(self, name) for name in names} | {"scale": self.head_dim**-0.5, "epsilon": EPSILON}

    @property
    def qkv_width(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim


UNUSED = -(2**31)
"""What a block table holds where nothing is read."""


@dataclass(frozen=True)
class Step:
    """Inputs of one attention call: sequences with ``past`` and ``new`` tokens over scattered blocks."""

    shape: Heads
    past: tuple[int, ...]
    new: tuple[int, ...]
    qkv: Floats
    cache: NDArray[np.uint16]
    """bf16 ``[blocks, layers, kv_heads, 2, 16 * head_dim]``"""
    table: NDArray[np.int32]
    cos: Floats
    sin: Floats
    q_norm: Floats | None
    k_norm: Floats | None

    @classmethod
    def random(cls, shape: Heads, past: tuple[int, ...], new: tuple[int, ...], seed: int = 0) -> Step:
        random = np.random.default_rng([seed, *past, *new])
        used = [-(-(p + n) // BLOCK_TOKENS) for p, n in zip(past, new, strict=True)]
        blocks = sum(used) + 3
        table = np.full((len(past), max(used) + 1), UNUSED, np.int32)
        places = iter(random.permutation(blocks))
        for row, count in zip(table, used, strict=True):
            row[:count] = [next(places) for _ in range(count)]
        positions = max(p + n for p, n in zip(past, new, strict=True))
        angles = np.outer(np.arange(positions), 100.0 ** (-np.arange(shape.head_dim // 2) / shape.head_dim))
        cache = random.standard_normal((blocks, shape.layers, shape.kv_heads, 2, BLOCK_TOKENS * shape.head_dim))

        def norm() -> Floats | None:
            return random.uniform(0.5, 1.5, shape.head_dim).astype(np.float32) if shape.norms else None

        return cls(
            shape,
            past,
            new,
            random.standard_normal((sum(new), shape.qkv_width)).astype(np.float32),
            cache.astype(bfloat16).view(np.uint16),
            table,
            np.cos(angles).astype(np.float32),
            np.sin(angles).astype(np.float32),
            norm(),
            norm(),
        )

    def feed(self) -> Feed:
        """Copies, since the operator writes to some of them."""
        return {
            "qkv": self.qkv.copy(),
            "cache": self.cache.copy(),
            "row_starts": np.cumsum([0, *self.new], dtype=np.int32),
            "past_tokens": np.array(self.past, np.int32),
            "block_table": self.table,
            "cos": self.cos,
            "sin": self.sin,
            "q_norm": self.q_norm,
            "k_norm": self.k_norm,
        }

    def run(self) -> tuple[Floats, NDArray[np.uint16]]:
        """The result and the cache after it."""
        feed = self.feed()
        result = run("MantlerAttention", feed, **self.shape.attributes)
        cache = feed["cache"]
        assert cache is not None
        return result, cache

    def part(self, sequence: int, start: int, stop: int, cache: NDArray[np.uint16]) -> Step:
        """New tokens [start, stop) of one sequence, with the tokens before them in ``cache``."""
        first = sum(self.new[:sequence])
        return replace(
            self,
            past=(self.past[sequence] + start,),
            new=(stop - start,),
            qkv=self.qkv[first + start : first + stop],
            cache=cache,
            table=self.table[sequence : sequence + 1],
        )

    def expected(self) -> tuple[NDArray[np.float64], NDArray[np.uint16]]:
        """The definition in float64, over keys and values as the cache keeps them; and the cache."""
        shape, cache = self.shape, self.cache.view(bfloat16).copy()
        result = np.empty((len(self.qkv), shape.heads, shape.head_dim))
        row = 0
        for table, past, new in zip(self.table, self.past, self.new, strict=True):
            for position in range(past, past + new):
                parts = self.qkv[row].astype(np.float64).reshape(-1, shape.head_dim)
                queries = self._turned(parts[: shape.heads], self.q_norm, position)
                keys = self._turned(parts[shape.heads : shape.heads + shape.kv_heads], self.k_norm, position)
                values = parts[shape.heads + shape.kv_heads :]
                block, token = cache[table[position // BLOCK_TOKENS], shape.layer], position % BLOCK_TOKENS
                block[:, 0].reshape(shape.kv_heads, -1, BLOCK_TOKENS, 2)[:, :, token] = keys.reshape(
                    shape.kv_heads, -1, 2
                )
                block[:, 1].reshape(shape.kv_heads, -1, shape.head_dim, 2)[:, token // 2, :, token % 2] = values
                result[row] = self._attended(queries, cache, table, position)
                row += 1
        return result.reshape(len(self.qkv), -1), cache.view(np.uint16)

    def _turned(self, heads: NDArray[np.float64], norm: Floats | None, position: int) -> NDArray[np.float64]:
        if norm is not None:
            heads = heads / np.sqrt((heads**2).mean(axis=-1, keepdims=True) + EPSILON) * norm
        low, high = np.split(heads, 2, axis=-1)
        cos, sin = self.cos[position].astype(np.float64), self.sin[position].astype(np.float64)
        return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)

    def _attended(
        self, queries: NDArray[np.float64], cache: NDArray[Any], table: NDArray[np.int32], position: int
    ) -> NDArray[np.float64]:
        shape = self.shape
        blocks = cache[table[: position // BLOCK_TOKENS + 1], shape.layer].astype(np.float64)
        keys = blocks[:, :, 0].reshape(-1, shape.kv_heads, shape.head_dim // 2, BLOCK_TOKENS, 2)
        keys = keys.transpose(1, 0, 3, 2, 4)
        values = blocks[:, :, 1].reshape(-1, shape.kv_heads, BLOCK_TOKENS // 2, shape.head_dim, 2)
        values = values.transpose(1, 0, 2, 4, 3)
        first = max(0, position + 1 - shape.window) if shape.window else 0
        keys, values = (
            part.reshape(shape.kv_heads, -1, shape.head_dim)[:, first : position + 1].repeat(
                shape.heads // shape.kv_heads, axis=0
            )
            for part in (keys, values)
        )
        scores = np.einsum("hd,htd->ht", queries, keys) * shape.head_dim**-0.5
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        result: NDArray[np.float64] = np.einsum("ht,htd->hd", shares, values)
        return result


def distance(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    """Of the two, relative to the length of ``expected``. One wrong number of thousands is one percent."""
    assert actual.shape == expected.shape
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
