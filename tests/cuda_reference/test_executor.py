"""Graphs as a whole: what is computed, what is refused, and what becomes of caches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from ml_dtypes import bfloat16
from onnx import NodeProto, TensorProto, helper

from tests.cuda_reference import graphs
from tests.cuda_reference.executor import NumpySession
from tests.cuda_reference.graphs import Feeds, one_node, output
from tests.cuda_reference.operators import CONTRIB
from tests.cuda_reference.tensors import Array, GraphError

X = np.arange(6, dtype=np.float32).reshape(2, 3)
WEIGHT = np.arange(3, dtype=np.float32)


def two_nodes() -> onnx.ModelProto:
    """``(x + weight) * x``."""
    nodes = [helper.make_node("Add", ["x", "weight"], ["sum"]), helper.make_node("Mul", ["sum", "x"], ["result"])]
    return graphs.model(nodes, [graphs.value("x", X, ["rows", 3])], [output("result")], {"weight": WEIGHT})


def test_nodes_run_in_order_with_weights_and_inputs() -> None:
    session = NumpySession(two_nodes())
    assert list(session.inputs) == ["x"]
    assert list(session.outputs) == ["result"]
    (result,) = session.run(None, {"x": X})
    np.testing.assert_array_equal(result, (X + WEIGHT) * X)
    result[:] = 0  # it is the caller's


def test_values_inside_the_graph_can_be_asked_for() -> None:
    found = NumpySession(two_nodes()).run(["sum", "weight", "x"], {"x": X})
    for array, expected in zip(found, (X + WEIGHT, WEIGHT, X), strict=True):
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("external", [False, True])
def test_a_model_comes_as_itself_as_bytes_or_in_a_file(external: bool, tmp_path: Path) -> None:
    onnx.save(two_nodes(), tmp_path / "model.onnx", save_as_external_data=external, location="data", size_threshold=0)
    for model in (two_nodes(), two_nodes().SerializeToString(), tmp_path / "model.onnx"):
        (result,) = NumpySession(model).run(None, {"x": X})
        np.testing.assert_array_equal(result, (X + WEIGHT) * X)


def test_weights_in_another_file_need_a_path(tmp_path: Path) -> None:
    onnx.save(two_nodes(), tmp_path / "model.onnx", save_as_external_data=True, location="data", size_threshold=0)
    with pytest.raises(GraphError, match="in another file, which a path leads to: weight"):
        NumpySession((tmp_path / "model.onnx").read_bytes())


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (helper.make_node("Mish", ["x"], ["y"]), "Mish 'y': no such operator of the domain ''"),
        (helper.make_node("Add", ["x", "x"], ["y"], name="n", domain=CONTRIB), "Add 'n': no such .* 'com.microsoft'"),
        (helper.make_node("Exp", ["x"], ["y"], base=2), "Exp 'y': unknown attributes: base"),
        (helper.make_node("Concat", ["x"], ["y"]), "missing attributes: axis"),
        (helper.make_node("Concat", ["x", ""], ["y"], axis=0), "an absent input"),
        (helper.make_node("Add", ["x"], ["y"]), "missing inputs: b"),
        (helper.make_node("Add", ["", "x"], ["y"]), "missing inputs: a"),
        (helper.make_node("Exp", ["x", "x"], ["y"]), "2 inputs, 1 at most"),
        (helper.make_node("PagedAttention", ["x"] * 8, ["y"], domain=CONTRIB), "attributes: num_heads, kv_num_heads"),
    ],
)
def test_nodes_that_are_refused_before_they_run(node: NodeProto, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        NumpySession(graphs.model([node], [graphs.value("x", X)], [output("y")]))


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (helper.make_node("Add", ["x", "later"], ["y"]), "Add 'y': nothing before it computes later"),
        (helper.make_node("Exp", ["x"], ["y", "z"]), "output 1, 'z', is none that is computed"),
        (
            helper.make_node("SkipSimplifiedLayerNormalization", ["x", "x", "gain"], ["y", "mean"], domain=CONTRIB),
            "output 1, 'mean'",
        ),
        (helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT16), "y is float16, the graph says float32"),
        (helper.make_node("Exp", ["x"], ["z"]), "nothing computes the output y"),
    ],
)
def test_nodes_that_are_refused_when_they_run(node: NodeProto, message: str) -> None:
    session = NumpySession(graphs.model([node], [graphs.value("x", X)], [output("y")], {"gain": WEIGHT}))
    with pytest.raises(GraphError, match=message):
        session.run(None, {"x": X})


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, r"missing or unknown: \['x'\]"),
        ({"x": X, "z": X}, r"missing or unknown: \['z'\]"),
        ({"x": X.astype(np.float64)}, "x is float64, the graph says float32"),
        ({"x": X[0]}, r"x has the shape \[3\], the graph says \[None, 3\]"),
        ({"x": X.T}, r"x has the shape \[3, 2\]"),
    ],
)
def test_inputs_that_are_refused(feeds: dict[str, Array], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        NumpySession(two_nodes()).run(None, feeds)


def test_an_unknown_output_is_refused() -> None:
    with pytest.raises(GraphError, match="outputs that are unknown"):
        NumpySession(two_nodes()).run(["logits"], {"x": X})


def test_an_old_opset_is_refused() -> None:
    node = helper.make_node("Exp", ["x"], ["y"])
    with pytest.raises(GraphError, match="opset 17, 18 at least"):
        NumpySession(graphs.model([node], [graphs.value("x", X)], [output("y")], opset=17))


def test_a_card_computes_infinities_without_a_warning() -> None:
    feeds = {"x": np.array([1e38, -1.0, np.inf], np.float32)}
    (narrow,) = NumpySession(one_node("Cast", feeds, [output("y", TensorProto.FLOAT16)], to=10)).run(None, feeds)
    np.testing.assert_array_equal(narrow, np.array([np.inf, -1, np.inf], np.float16))
    (logarithm,) = NumpySession(one_node("Log", feeds, [output("y")])).run(None, feeds)
    assert np.isnan(logarithm[1])


def attention_feeds() -> Feeds:
    random = np.random.default_rng(3)
    return {
        "qkv": random.standard_normal((3, 4 * 8)).astype(bfloat16),
        "key": None,
        "value": None,
        "key_cache": np.zeros((2, 16, 1, 8), bfloat16),
        "value_cache": np.zeros((2, 16, 1, 8), bfloat16),
        "starts": np.array([0, 3], np.int32),
        "past": np.array([0], np.int32),
        "table": np.array([[1]], np.int32),
    }


ATTENTION: dict[str, Any] = {"domain": CONTRIB, "num_heads": 2, "kv_num_heads": 1}
BF16 = TensorProto.BFLOAT16


def test_caches_are_written_in_place_and_handed_out_as_they_are() -> None:
    feeds = attention_feeds()
    outputs = [output(name, BF16) for name in ("attended", "key_cache_out", "value_cache_out")]
    inputs = graphs.given(feeds)
    attended, *caches = NumpySession(one_node("PagedAttention", feeds, outputs, **ATTENTION)).run(None, inputs)
    assert attended.dtype == bfloat16
    assert attended.shape == (3, 16)
    assert caches[0] is inputs["key_cache"]
    assert caches[1] is inputs["value_cache"]
    np.testing.assert_array_equal(caches[1][1, :3, 0], inputs["qkv"][:, 24:])
    assert not caches[1][0].any()


@pytest.mark.parametrize("op", ["Identity", "Add"])
def test_a_cache_that_a_node_computed_is_refused(op: str) -> None:
    """On a card it is a copy: what attention writes to it would be gone with the step."""
    feeds = attention_feeds()
    names = [name if array is not None else "" for name, array in feeds.items()]
    names[names.index("value_cache")] = "copy"
    copied = ["value_cache"] if op == "Identity" else ["value_cache", "value_cache"]
    attention = helper.make_node("PagedAttention", names, ["attended"], **ATTENTION)
    inputs = [graphs.value(name, array) for name, array in graphs.given(feeds).items()]
    model = graphs.model([helper.make_node(op, copied, ["copy"]), attention], inputs, [output("attended", BF16)])
    with pytest.raises(GraphError, match="a cache that is no input of the graph"):
        NumpySession(model).run(None, graphs.given(feeds))
