"""The types of tensors, and how the kernels compute with them: in fp32, rounded once to the type of the inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from ml_dtypes import bfloat16
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float32]

FLOATS = tuple(np.dtype(kind) for kind in (np.float16, bfloat16, np.float32))


class GraphError(Exception):
    """A graph, or what it was fed, that ONNX Runtime or its CUDA kernels do not take."""


def one_type(*arrays: Array) -> np.dtype[Any]:
    """The type that all have: kernels convert nothing. Raises ``TypeError``."""
    kinds = {array.dtype for array in arrays}
    if len(kinds) != 1:
        raise TypeError(f"inputs of the types {', '.join(sorted(map(str, kinds)))}, which should be one")
    return kinds.pop()


def one_float_type(*arrays: Array) -> np.dtype[Any]:
    """As :func:`one_type`, and fp32, fp16 or bf16. Raises ``TypeError``."""
    kind = one_type(*arrays)
    if kind not in FLOATS:
        raise TypeError(f"inputs of the type {kind}, which should be floating-point")
    return kind


def wide(array: Array) -> Floats:
    """As fp32."""
    return array.astype(np.float32)


def rounded(function: Callable[..., Array], *arrays: Array) -> Array:
    """What ``function`` makes of arrays of one type, in that type. Raises ``TypeError``."""
    kind = one_type(*arrays)
    if kind in FLOATS:
        return np.asarray(function(*map(wide, arrays))).astype(kind)
    result = np.asarray(function(*arrays))
    if result.dtype != kind:
        raise TypeError(f"inputs of the type {kind}, which should be floating-point")
    return result
