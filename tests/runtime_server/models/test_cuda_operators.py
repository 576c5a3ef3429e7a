"""The nodes of the CUDA graph against what ONNX Runtime says of its operators."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import defs, helper
from onnxruntime.capi import onnxruntime_pybind11_state as state

from runtime_server.models import graph
from runtime_server.models.cuda_format import GROUP, block_tokens, quantizable
from runtime_server.models.cuda_operators import BF16, four_bits
from runtime_server.models.manifest import MODEL_FILE
from tests.cuda_reference.executor import NumpySession
from tests.reference_decoder import RandomWeights
from tests.tiny_models import tiny_config

SINGLE, OPTIONAL = "FormalParameterOption.Single", "FormalParameterOption.Optional"


@pytest.mark.parametrize("quantization", ["bf16", "int4"])
@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3"])
def test_every_node_is_as_its_schema_says(architecture: str, quantization: str, tmp_path: Path) -> None:
    """Inputs, outputs and attributes, and the types of all values, which a run of the graph in numpy shows."""
    config = replace(tiny_config(architecture, tied=architecture == "llama"), sliding_window=20)
    graph.build(config, RandomWeights(config), tmp_path, quantization=quantization)
    model = onnx.load(tmp_path / MODEL_FILE)
    known = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    known |= {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    known |= _types_of_a_run(tmp_path, model)
    contrib = {schema.name: schema for schema in state.get_all_operator_schema() if schema.domain == "com.microsoft"}
    for node in model.graph.node:
        used = {attribute.name for attribute in node.attribute}
        if node.domain == "com.microsoft":
            _check(node, used, contrib[node.op_type], known)
        elif node.op_type != "SimplifiedLayerNormalization":  # ONNX Runtime's own, in the standard's domain
            schema = defs.get_schema(node.op_type, graph.OPSET)
            assert used <= schema.attributes.keys()
            assert schema.min_input <= len(node.input) <= schema.max_input
    outputs = {value.name: value.type.tensor_type.elem_type for value in model.graph.output}
    assert outputs == {name: known[name] for name in outputs}


def _check(node: onnx.NodeProto, used: set[str], schema: Any, known: dict[str, int]) -> None:
    required = {name for name, attribute in schema.attributes.items() if attribute.required}
    assert required <= used <= schema.attributes.keys(), node.name
    types = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
    bound: dict[str, set[str]] = {}
    for names, parameters in ((node.input, schema.inputs), (node.output, schema.outputs)):
        assert len(names) <= len(parameters), node.name
        for name, parameter in zip(names, parameters, strict=False):
            if not name:
                assert str(parameter.option) == OPTIONAL, f"{node.name} lacks {parameter.name}"
                continue
            kind = f"tensor({helper.tensor_dtype_to_string(known[name]).removeprefix('TensorProto.').lower()})"
            assert kind in types[parameter.typeStr], f"{parameter.name} of {node.name} is a {kind}"
            bound.setdefault(parameter.typeStr, set()).add(kind)
        for parameter in list(parameters)[len(names) :]:
            assert str(parameter.option) == OPTIONAL, f"{node.name} lacks {parameter.name}"
    assert all(len(kinds) == 1 for kinds in bound.values()), f"{node.name} mixes types: {bound}"


def _types_of_a_run(folder: Path, model: onnx.ModelProto) -> dict[str, int]:
    session = NumpySession(folder / MODEL_FILE)
    names = [name for node in model.graph.node for name in node.output if name]
    feeds: dict[str, np.ndarray[Any, Any]] = {}
    for value in model.graph.input:
        kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        sizes = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
        feeds[value.name] = np.zeros(sizes, kind)
    feeds["row_starts"] = np.array([0, 1], np.int32)
    feeds["attention_bounds"] = np.array([1, 1, 0], np.int32)
    values = zip(names, session.run(names, feeds), strict=True)
    return {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in values}


WEIGHTS = {
    "normal": np.random.default_rng(1).standard_normal((8, 4 * GROUP)),
    "zeros": np.zeros((2, GROUP)),
    "one": np.eye(2, GROUP),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_four_bits_are_the_nearest_level(name: str) -> None:
    weight = WEIGHTS[name].astype(np.float32)
    packed, scales = four_bits(weight)
    assert packed.shape == (len(weight), weight.shape[1] // GROUP, GROUP // 2)
    assert scales.shape == packed.shape[:2]
    assert scales.dtype == BF16
    levels = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*scales.shape, GROUP).astype(np.float32) - 8
    wide = scales.astype(np.float32)[..., None]
    groups = weight.reshape(*scales.shape, GROUP)
    candidates = np.arange(-8, 8)[:, None, None, None] * wide
    nearest = np.abs(candidates - groups).min(axis=0)
    np.testing.assert_allclose(np.abs(levels * wide - groups), nearest, atol=1e-7)


@given(st.integers(1, 256))
def test_blocks_are_whole_tiles_of_flash_attention(head_dim: int) -> None:
    """As ``paged_attention.cc`` of ONNX Runtime 1.31 asks for them."""
    tile = 256 if head_dim <= 64 else 128 if head_dim <= 128 else 64
    assert block_tokens(head_dim) % tile == 0


def test_which_layers_the_mixed_gemm_takes() -> None:
    assert quantizable((64, 32))
    assert not quantizable((65, 32))
    assert not quantizable((64, 33))
