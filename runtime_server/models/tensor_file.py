"""Streams initializers into one external data file, so that a conversion holds one weight at a time."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

ALIGNMENT = 4096
"""ONNX Runtime maps external data from page-aligned offsets without copying it."""
INLINE_BYTES = 1024
"""Smaller tensors stand in the model itself: shape inference reads shapes and axes only there."""


class TensorFile:
    """Writes tensors one after the other and keeps the protos that refer to them.

    Use as a context manager; leaving it flushes the file to disk.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")
        self.tensors: list[onnx.TensorProto] = []

    def add(self, name: str, array: NDArray[Any]) -> str:
        """Appends ``array`` as the initializer ``name``; returns the name."""
        if array.nbytes <= INLINE_BYTES:
            self.tensors.append(numpy_helper.from_array(array, name))
            return name
        self._file.write(bytes(-self._file.tell() % ALIGNMENT))
        offset = self._file.tell()
        contiguous = np.ascontiguousarray(array)
        # As bytes, because a buffer knows no bfloat16.
        self._file.write(contiguous.reshape(-1).view(np.uint8).data)
        tensor = onnx.TensorProto(
            name=name,
            dims=array.shape,
            data_type=onnx.helper.np_dtype_to_tensor_dtype(array.dtype),
            data_location=onnx.TensorProto.EXTERNAL,
        )
        location = {"location": self._path.name, "offset": offset, "length": contiguous.nbytes}
        for key, value in location.items():
            tensor.external_data.add(key=key, value=str(value))
        self.tensors.append(tensor)
        return name

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()
