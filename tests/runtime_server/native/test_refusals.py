"""Inputs that do not fit are errors of ONNX Runtime: nothing is read or written where it does not belong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

from tests.runtime_server.native.operators import Feed, Heads, Linear, Step, run

REFUSED = (Fail, InvalidArgument, RuntimeException)
LINEAR = Linear.random(8, 20, 40, norm=True, bias=True)
X = np.ones((3, 40), np.float32)
SHAPE = Heads(4, 2, 32, norms=True)
STEP = Step.random(SHAPE, past=(10, 0), new=(3, 20))


def short(values: list[int]) -> NDArray[np.int32]:
    return np.array(values, np.int32)


def linear(**changes: Any) -> None:
    run("MantlerLinear", LINEAR.feed(X, np.ones((3, 20), np.float32)) | changes, **LINEAR.attributes)


def attention(**changes: Any) -> None:
    feed: Feed = STEP.feed() | changes
    run("MantlerAttention", feed, **SHAPE.attributes)


def test_what_fits_is_taken() -> None:
    linear()
    attention()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight", LINEAR.packed.data[:-1]),
        ("weight", np.concatenate([LINEAR.packed.data] * 2)),
        ("weight", np.zeros(0, np.uint8)),
        ("x", np.ones((3, 65), np.float32)),
        ("x", np.ones(40, np.float32)),
        ("x", np.ones((3, 40, 1), np.float32)),
        ("norm", np.ones(39, np.float32)),
        ("bias", np.ones(21, np.float32)),
        ("residual", np.ones((2, 20), np.float32)),
    ],
)
def test_a_linear_layer_refuses(name: str, value: Any) -> None:
    with pytest.raises(REFUSED, match=r"linear layer|fit"):
        linear(**{name: value})


@pytest.mark.parametrize("attributes", [{"bits": 5}, {"gated": 1}, {"out_features": 0}, {"out_features": -16}])
def test_a_linear_layer_refuses_attributes(attributes: dict[str, int]) -> None:
    with pytest.raises(REFUSED):
        run("MantlerLinear", LINEAR.feed(X), **LINEAR.attributes | attributes)


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("outside of the cache", {"block_table": np.full_like(STEP.table, len(STEP.cache))}),
        ("outside of the cache", {"block_table": np.full_like(STEP.table, -1)}),
        ("longer than its block table", {"block_table": STEP.table[:, :1]}),
        ("longer than its block table", {"past_tokens": short([10, 13])}),
        ("longer than its block table", {"past_tokens": short([2**31 - 1, 0])}),
        ("no fewer than 0 tokens", {"past_tokens": short([-1, 0])}),
        ("from 0 to the number of rows", {"row_starts": short([1, 3, 23])}),
        ("from 0 to the number of rows", {"row_starts": short([0, 3, 24])}),
        ("must have rows", {"row_starts": short([0, 0, 23])}),
        ("longer than its block table", {"row_starts": short([0, 24, 23])}),
        ("must have rows", {"row_starts": short([0, -5, 23])}),
        ("fit past_tokens", {"row_starts": short([0, 23])}),
        ("fit past_tokens", {"block_table": STEP.table[:1]}),
        ("fit past_tokens", {"block_table": STEP.table[0]}),
        ("qkv does not fit", {"qkv": STEP.qkv[:, 1:].copy()}),
        ("qkv does not fit", {"qkv": STEP.qkv[0].copy()}),
        ("the cache does not fit", {"cache": STEP.cache[:, :1].copy()}),
        ("cos and sin", {"cos": STEP.cos[:, 1:].copy()}),
        ("cos and sin", {"sin": STEP.sin[1:].copy()}),
        ("norms do not fit", {"q_norm": np.ones(31, np.float32)}),
        ("norms do not fit", {"k_norm": np.ones(64, np.float32)}),
    ],
)
def test_attention_refuses(message: str, changes: dict[str, Any]) -> None:
    with pytest.raises(REFUSED, match=message):
        attention(**changes)


@pytest.mark.parametrize(
    "attributes",
    [
        {"head_dim": 24},
        {"head_dim": 0},
        {"head_dim": 272},
        {"heads": 3},
        {"heads": 0},
        {"kv_heads": 0},
        {"layer": 2},
        {"layer": -1},
        {"layers": 0},
        {"window": -1},
    ],
)
def test_attention_refuses_attributes(attributes: dict[str, int]) -> None:
    with pytest.raises(REFUSED):
        run("MantlerAttention", STEP.feed(), **SHAPE.attributes | attributes)


@pytest.mark.parametrize("token", [-1, 20, 2**40])
def test_the_embedding_refuses_a_token_that_is_not_in_the_vocabulary(token: int) -> None:
    feed: Feed = {"ids": np.array([0, token], np.int64), "weight": LINEAR.packed.data}
    with pytest.raises(REFUSED, match="outside of the vocabulary"):
        run("MantlerEmbedding", feed, bits=8, in_features=40, out_features=20)


@pytest.mark.parametrize("features", [(41 + 32, 20), (40, 33), (0, 20), (40, -1)])
def test_the_embedding_refuses_a_weight_of_another_size(features: tuple[int, int]) -> None:
    feed: Feed = {"ids": np.array([0], np.int64), "weight": LINEAR.packed.data}
    with pytest.raises(REFUSED, match=r"fit|features"):
        run("MantlerEmbedding", feed, bits=8, in_features=features[0], out_features=features[1])
