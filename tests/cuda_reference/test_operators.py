"""Each operator against ONNX Runtime's kernel for the processor, in fp32; and narrow types against fp32."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_dtypes import bfloat16
from onnx import TensorProto, helper

from runtime_server.backends import cpu
from tests.cuda_reference import graphs
from tests.cuda_reference.executor import NumpySession
from tests.cuda_reference.graphs import Feeds, one_node, output
from tests.cuda_reference.operators import CONTRIB, OPERATORS
from tests.cuda_reference.tensors import Array, GraphError, wide

FLOAT, INT32, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL
_random = np.random.default_rng(7)


def floats(*shape: int) -> Array:
    return _random.standard_normal(shape).astype(np.float32)


def whole(*values: int) -> Array:
    return np.array(values, np.int64)


def compare(
    op: str, arrays: list[Array | None], kinds: list[int], domain: str = "", atol: float = 2e-6, **attributes: Any
) -> None:
    """What both make of one node; a kind of 0 is an output that is absent."""
    feeds: Feeds = {f"input{place}": array for place, array in enumerate(arrays)}
    outputs = [output(f"output{place}" if kind else "", kind or FLOAT) for place, kind in enumerate(kinds)]
    model = one_node(op, feeds, outputs, domain, **attributes)
    cpu._start_threads(2)  # as the backend's sessions in this process
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.use_per_session_threads = False
    theirs = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    expected = theirs.run(None, graphs.given(feeds))
    actual = NumpySession(model).run(None, graphs.given(feeds))
    for ours, wanted in zip(actual, expected, strict=True):
        assert ours.dtype == wanted.dtype
        assert ours.shape == wanted.shape
        np.testing.assert_allclose(ours, wanted, rtol=2e-5, atol=atol)


ROWS, LONG = floats(3, 5), floats(2, 3, 4)
TIED = _random.integers(0, 4, (2, 50)).astype(np.float32)
CASES: dict[str, tuple[str, list[Array | None], list[int], dict[str, Any]]] = {
    "add": ("Add", [ROWS, floats(5)], [FLOAT], {}),
    "add integers": ("Add", [whole(1, 2), whole(3)], [INT64], {}),
    "arg max": ("ArgMax", [TIED], [INT64], {"axis": -1}),
    "arg max, flat": ("ArgMax", [TIED], [INT64], {"axis": 1, "keepdims": 0}),
    "cast": ("Cast", [10 * ROWS], [INT32], {"to": INT32}),
    "concat": ("Concat", [ROWS, floats(3, 2), floats(3, 1)], [FLOAT], {"axis": -1}),
    "equal": ("Equal", [whole(1, 2, 3), whole(2)], [BOOL], {}),
    "exp": ("Exp", [np.array([-np.inf, 0, 1, 100], np.float32)], [FLOAT], {}),
    "gather": ("Gather", [ROWS, np.array([[2, 0], [-1, 1]], np.int32)], [FLOAT], {}),
    "gather columns": ("Gather", [ROWS, whole(4, 4)], [FLOAT], {"axis": 1}),
    "gather one": ("Gather", [ROWS, np.array(1)], [FLOAT], {"axis": -1}),
    "gather elements": ("GatherElements", [ROWS, np.array([[4, -1], [0, 2]], np.int64)], [FLOAT], {"axis": 1}),
    "gemm": ("Gemm", [ROWS, floats(4, 5), floats(4)], [FLOAT], {"transB": 1}),
    "gemm, scaled": ("Gemm", [ROWS, floats(3, 4), floats(1)], [FLOAT], {"transA": 1, "alpha": 0.5, "beta": 2.0}),
    "identity": ("Identity", [ROWS], [FLOAT], {}),
    "less": ("Less", [ROWS, floats(1)], [BOOL], {}),
    "log": ("Log", [np.array([0, 1, 2, np.inf], np.float32)], [FLOAT], {}),
    "matmul": ("MatMul", [LONG, floats(4, 6)], [FLOAT], {}),
    "max": ("Max", [ROWS, floats(5), floats(1)], [FLOAT], {}),
    "min": ("Min", [whole(1, 5), whole(3)], [INT64], {}),
    "mul": ("Mul", [ROWS, floats(3, 1)], [FLOAT], {}),
    "quick gelu": ("QuickGelu", [30 * ROWS], [FLOAT], {"domain": CONTRIB}),
    "silu": ("QuickGelu", [100 * ROWS], [FLOAT], {"domain": CONTRIB, "alpha": 1.0}),
    "log sum exp": ("ReduceLogSumExp", [300 * LONG, whole(-1, 0)], [FLOAT], {"keepdims": 0}),
    "log sum exp of all": ("ReduceLogSumExp", [LONG], [FLOAT], {}),
    "greatest": ("ReduceMax", [LONG, whole(1)], [FLOAT], {}),
    "greatest, no axes": ("ReduceMax", [LONG, np.zeros(0, np.int64)], [FLOAT], {"noop_with_empty_axes": 1}),
    "sum": ("ReduceSum", [LONG, whole(0, 2)], [FLOAT], {}),
    "sum of integers": ("ReduceSum", [np.array([[1, 2], [3, 4]], np.int32), whole(0)], [INT32], {"keepdims": 0}),
    "reshape": ("Reshape", [LONG, whole(0, -1)], [FLOAT], {}),
    "scatter elements": ("ScatterElements", [ROWS, np.array([[4], [0]], np.int64), floats(2, 1)], [FLOAT], {"axis": 1}),
    "scatter": ("ScatterND", [LONG, np.array([[1, 2], [0, -1]], np.int64), floats(2, 4)], [FLOAT], {}),
    "shape": ("Shape", [LONG], [INT64], {"start": -2}),
    "sigmoid": ("Sigmoid", [100 * ROWS], [FLOAT], {}),
    "norm": ("SimplifiedLayerNormalization", [LONG, floats(4)], [FLOAT], {"epsilon": 0.1}),
    "slice": ("Slice", [LONG, whole(1, -3), whole(9, -1), whole(1, 2)], [FLOAT], {}),
    "slice backwards": ("Slice", [ROWS, whole(-1), whole(-(2**62)), whole(1), whole(-2)], [FLOAT], {}),
    "split in equal parts": ("Split", [ROWS], [FLOAT, FLOAT], {"axis": 1, "num_outputs": 2}),
    "split": ("Split", [ROWS, whole(1, 0, 4)], [FLOAT, FLOAT, FLOAT], {"axis": -1}),
    "squeeze": ("Squeeze", [floats(1, 3, 1), whole(-1)], [FLOAT], {}),
    "squeeze all": ("Squeeze", [floats(1, 3, 1)], [FLOAT], {}),
    "sub": ("Sub", [np.array([5, 6], np.int32), np.array([7], np.int32)], [INT32], {}),
    "top": ("TopK", [TIED, whole(30)], [FLOAT, INT64], {}),
    "bottom": ("TopK", [TIED, whole(2)], [FLOAT, INT64], {"largest": 0, "axis": 1}),
    "transpose": ("Transpose", [LONG], [FLOAT], {"perm": [1, 2, 0]}),
    "transpose all": ("Transpose", [LONG], [FLOAT], {}),
    "unsqueeze": ("Unsqueeze", [ROWS, whole(0, -1)], [FLOAT], {}),
    "where": ("Where", [ROWS > 0, ROWS, floats(1)], [FLOAT], {}),
    **{
        f"constant {name}": ("Constant", [], [kind], {name: value})
        for name, kind, value in [
            ("value_int", INT64, 3),
            ("value_ints", INT64, [3, 4]),
            ("value_float", FLOAT, 0.5),
            ("value_floats", FLOAT, [0.5, 1.5]),
            ("value", FLOAT, helper.make_tensor("x", FLOAT, [1, 2], [1.0, 2.0])),
        ]
    },
    **{
        f"sum and norm, {bias}": (
            "SkipSimplifiedLayerNormalization",
            [LONG, floats(2, 3, 4), floats(4), *([floats(4)] if bias == "biased" else [])],
            [FLOAT, 0, 0, FLOAT],
            {"domain": CONTRIB, "epsilon": 1e-5},
        )
        for bias in ("plain", "biased")
    },
}


@pytest.mark.parametrize("name", CASES)
def test_an_operator_is_as_on_the_processor(name: str) -> None:
    op, arrays, kinds, attributes = CASES[name]
    compare(op, arrays, kinds, **attributes)


def test_every_operator_is_compared() -> None:
    elsewhere = {"MatMulNBits", "PagedAttention"}
    assert {op for _, op in OPERATORS} - elsewhere == {op for op, *_ in CASES.values()}


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from([32, 64, 128]),
    st.integers(1, 300),
    st.integers(1, 9),
    st.sampled_from(["none", "packed", "floats"]),
    st.booleans(),
)
def test_four_bit_products_are_as_on_the_processor(
    block_size: int, inner: int, outputs: int, zeros: str, biased: bool
) -> None:
    random = np.random.default_rng(inner)
    blocks = -(-inner // block_size)
    packed = random.integers(0, 256, (outputs, blocks, block_size // 2), np.uint8)
    scales = random.random((outputs, blocks), np.float32) / 8
    zero_points = {
        "none": None,
        "packed": random.integers(0, 256, (outputs, -(-blocks // 2)), np.uint8),
        "floats": 15 * random.random((outputs, blocks), np.float32),
    }[zeros]
    bias = random.random(outputs, np.float32) if biased else None
    arrays = [random.random((2, 3, inner), np.float32), packed, scales, zero_points, None, bias]
    sizes = {"N": outputs, "K": inner, "bits": 4, "block_size": block_size}
    # Hundreds of products up to 2 may cancel each other out.
    compare("MatMulNBits", arrays, [FLOAT], CONTRIB, atol=1e-4, **sizes)


@pytest.mark.parametrize("kind", [np.float16, bfloat16])
@pytest.mark.parametrize(
    ("op", "shapes", "attributes"),
    [
        ("Add", [(3, 4), (4,)], {}),
        ("MatMul", [(3, 40), (40, 2)], {}),
        ("Gemm", [(3, 40), (2, 40), (2,)], {"transB": 1}),
        ("ReduceSum", [(3, 400)], {}),
        ("QuickGelu", [(50,)], {"domain": CONTRIB, "alpha": 1.0}),
        ("SimplifiedLayerNormalization", [(3, 8), (8,)], {}),
        ("SkipSimplifiedLayerNormalization", [(3, 8), (3, 8), (8,)], {"domain": CONTRIB}),
    ],
)
def test_narrow_types_are_computed_in_fp32_and_rounded_once(
    kind: Any, op: str, shapes: list[tuple[int, ...]], attributes: dict[str, Any]
) -> None:
    narrow = {f"input{place}": floats(*shape).astype(kind) for place, shape in enumerate(shapes)}
    broad = {name: wide(array) for name, array in narrow.items()}
    results = []
    for feeds, element in ((narrow, helper.np_dtype_to_tensor_dtype(np.dtype(kind))), (broad, FLOAT)):
        model = one_node(op, feeds, [output("result", element)], **attributes)
        results.append(NumpySession(model).run(None, feeds)[0])
    assert results[0].dtype == kind
    np.testing.assert_array_equal(results[0], results[1].astype(kind))


SIZES = {"N": 2, "K": 64, "bits": 4, "block_size": 32}
PACKED, SCALES = np.zeros((2, 2, 16), np.uint8), np.ones((2, 2), np.float32)


@pytest.mark.parametrize(
    ("arrays", "changes", "message"),
    [
        ([floats(1, 64), PACKED, SCALES], {"bits": 8}, "bits that are not 4"),
        ([floats(1, 64), PACKED, SCALES], {"weight_prepacked": 1}, "prepacked"),
        ([floats(1, 64), PACKED, SCALES], {"block_size": 48}, "block_size 48"),
        ([floats(1, 63), PACKED, SCALES], {}, r"a of the shape \(1, 63\)"),
        ([floats(1, 64), PACKED.reshape(2, 32), SCALES], {}, r"b of the shape \(2, 32\)"),
        ([floats(1, 64), PACKED, SCALES[:1]], {}, "scales of the shape"),
        ([floats(1, 64), PACKED, SCALES.astype(np.float16)], {}, "float16, float32"),
        ([floats(1, 64), PACKED.astype(np.int32), SCALES], {}, "should be uint8"),
        ([floats(1, 64), PACKED, SCALES, np.zeros((2, 2), np.uint8)], {}, "zero_points of the shape"),
        ([floats(1, 64), PACKED, SCALES, None, whole(0)], {}, "g_idx"),
        ([floats(1, 64), PACKED, SCALES, None, None, floats(3)], {}, "bias of the shape"),
    ],
)
def test_four_bit_products_refuse(arrays: list[Array | None], changes: dict[str, Any], message: str) -> None:
    feeds: Feeds = {f"input{place}": array for place, array in enumerate(arrays)}
    model = one_node("MatMulNBits", feeds, [output("result")], CONTRIB, **{**SIZES, **changes})
    with pytest.raises(GraphError, match=message):
        NumpySession(model).run(None, graphs.given(feeds))


@pytest.mark.parametrize(
    ("op", "arrays", "attributes", "message"),
    [
        ("Add", [ROWS, ROWS.astype(bfloat16)], {}, "bfloat16, float32, which should be one"),
        ("Exp", [whole(1)], {}, "int64, which should be floating-point"),
        ("Concat", [ROWS, ROWS.astype(np.float16)], {"axis": 0}, "should be one"),
        ("Where", [ROWS > 0, ROWS, whole(1)], {}, "should be one"),
        ("Gather", [ROWS, whole(3)], {}, "out of bounds"),
        ("Gemm", [LONG, ROWS], {}, "should be 2"),
        ("MatMul", [ROWS, ROWS], {}, "mismatch"),
        ("ScatterND", [ROWS, whole(1), ROWS[0]], {"reduction": "add"}, "reduction add"),
        ("ScatterElements", [ROWS, np.array([[0]], np.int64), ROWS[:1, :1]], {"reduction": "add"}, "reduction add"),
        ("SimplifiedLayerNormalization", [ROWS, floats(4)], {}, "gain"),
        ("SimplifiedLayerNormalization", [ROWS, floats(5)], {"axis": 0}, "axis 0"),
        ("SimplifiedLayerNormalization", [ROWS, floats(5)], {"stash_type": 10}, "stash_type 10"),
        ("SkipSimplifiedLayerNormalization", [ROWS, floats(5), floats(5)], {"domain": CONTRIB}, "a sum"),
        ("Split", [ROWS, whole(1, 1)], {"axis": 1}, "parts"),
        ("Split", [ROWS], {}, "neither"),
        ("TopK", [ROWS, whole(6)], {}, "6 of 5"),
    ],
)
def test_operators_refuse(op: str, arrays: list[Array], attributes: dict[str, Any], message: str) -> None:
    feeds = {f"input{place}": array for place, array in enumerate(arrays)}
    with pytest.raises(GraphError, match=message):
        NumpySession(one_node(op, feeds, [output("result")], **attributes)).run(None, feeds)
