"""Builds the ONNX model of a llama-family decoder.

The graph works on *packed* rows: the tokens of all sequences in one step, prompts and decodes together, stand one after
the other. What its layers do is written here; with which operators, and so which inputs and outputs it has, in
:mod:`runtime_server.models.cpu_operators` and :mod:`runtime_server.models.cuda_operators`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from runtime_server.models.cpu_operators import CpuOperators
from runtime_server.models.cuda_operators import CudaOperators
from runtime_server.models.decoder import DecoderConfig, Weights
from runtime_server.models.manifest import MODEL_FILE
from runtime_server.models.nodes import CONTRIB, NATIVE, Nodes
from runtime_server.models.operators import Operators
from runtime_server.models.quantizations import CPU, DEFAULT_QUANTIZATION, QUANTIZATIONS
from runtime_server.models.shapes import parameter_count
from runtime_server.models.tensor_file import TensorFile

OPSET = 21
IR_VERSION = 10

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
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"quantization must be one of {', '.join(QUANTIZATIONS)}, got {quantization!r}")
    total = work_bytes(config)
    path = folder / MODEL_FILE
    with TensorFile(path.with_suffix(".bin")) as file:
        counted = _Counted(weights, lambda done: progress(min(done, total), total))
        nodes = Nodes(file)
        kind = CpuOperators if quantization in CPU else CudaOperators
        operators = kind(config, counted, nodes, quantization)
        _add_decoder(config, counted, operators)
        graph = helper.make_graph(nodes.list, "decoder", operators.inputs(), operators.outputs(), file.tensors)
    opsets = [helper.make_opsetid(domain, version) for domain, version in (("", OPSET), (NATIVE, 1), (CONTRIB, 1))]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="mantler"), path)
    progress(total, total)


def work_bytes(config: DecoderConfig) -> int:
    """Bytes of fp32 weights that :func:`build` goes through."""
    return 4 * parameter_count(config)


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


def _add_decoder(config: DecoderConfig, weights: Weights, operators: Operators) -> None:
    hidden = operators.embedding(weights.load("embed"))
    for layer in range(config.layers):
        hidden = _add_layer(config, weights, operators, layer, hidden)
    operators.head(hidden, None if config.tied_embeddings else weights.load("lm_head"), norm="final_norm")


def _add_layer(config: DecoderConfig, weights: Weights, operators: Operators, layer: int, hidden: str) -> str:
    name = f"layers.{layer}"

    def load(part: str) -> NDArray[np.float32]:
        return weights.load(f"{name}.{part}")

    def stacked(*parts: str) -> NDArray[np.float32]:
        return np.concatenate([load(part) for part in parts])

    bias = stacked("q_bias", "k_bias", "v_bias") if config.qkv_bias else None
    qkv = operators.linear(hidden, stacked("q", "k", "v"), f"{name}/qkv", norm=f"{name}.attn_norm", bias=bias)
    attended = operators.attention(qkv, name, layer)
    hidden = operators.linear(attended, load("o"), f"{name}/o", residual=hidden)
    inner = operators.gated(hidden, load("gate"), load("up"), f"{name}/gated", norm=f"{name}.mlp_norm")
    return operators.linear(inner, load("down"), f"{name}/down", residual=hidden)
