"""The calls of CUDA's runtime library, on a library that keeps its memory in this process."""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from runtime_server.backends.cuda_runtime import OUT_OF_MEMORY, CudaError, CudaRuntime


class Library:
    """What is called of ``libcudart``. Copies happen when the stream is waited for, as late as they may."""

    def __init__(self, room: int = 10**6) -> None:
        self._room = room
        self.memory: dict[int, ctypes.Array[ctypes.c_char]] = {}
        self.streams = 0
        self.pending: list[Callable[[], object]] = []
        self.cudaGetErrorName = _Name()

    def cudaSetDevice(self, device: ctypes.c_int) -> int:  # noqa: N802
        return 0 if device.value == 1 else 101

    def cudaStreamCreateWithFlags(self, out: Any, flags: ctypes.c_uint) -> int:  # noqa: N802
        out._obj.value = 77
        self.streams += 1
        return 0

    def cudaStreamDestroy(self, stream: ctypes.c_void_p) -> int:  # noqa: N802
        self.streams -= 1
        return 0

    def cudaMalloc(self, out: Any, size: ctypes.c_size_t) -> int:  # noqa: N802
        if size.value > self._room:
            return OUT_OF_MEMORY
        self._room -= size.value
        held = ctypes.create_string_buffer(b"\xaa" * size.value, size.value)
        out._obj.value = ctypes.addressof(held)
        self.memory[ctypes.addressof(held)] = held
        return 0

    cudaMallocHost = cudaMalloc  # noqa: N815

    def cudaFree(self, address: ctypes.c_void_p) -> int:  # noqa: N802
        assert address.value is not None
        del self.memory[address.value]
        return 0

    cudaFreeHost = cudaFree  # noqa: N815

    def cudaMemsetAsync(self, address: Any, value: Any, size: Any, stream: ctypes.c_void_p) -> int:  # noqa: N802
        assert stream.value == 77
        self.pending.append(lambda: ctypes.memset(address.value, value.value, size.value))
        return 0

    def cudaMemcpyAsync(self, to: Any, source: Any, size: Any, kind: Any, stream: Any) -> int:  # noqa: N802
        assert stream.value == 77
        self.pending.append(lambda: ctypes.memmove(to.value, source.value, size.value))
        return 0

    def cudaStreamSynchronize(self, stream: ctypes.c_void_p) -> int:  # noqa: N802
        for action in self.pending:
            action()
        self.pending.clear()
        return 0


class _Name:
    restype: Any = None

    def __call__(self, code: ctypes.c_int) -> bytes:
        return b"cudaErrorMemoryAllocation"


def runtime(library: Library) -> CudaRuntime:
    return CudaRuntime(1, library)  # type: ignore[arg-type]


def test_what_is_copied_to_the_card_and_back_is_the_same() -> None:
    library = Library()
    cuda = runtime(library)
    first, second = cuda.allocate(64), cuda.allocate(64)
    there, back = cuda.pinned(64), cuda.pinned(64).view(np.int32)
    there[:] = np.arange(64)
    cuda.upload(first, there)
    cuda.copy(second + 16, first, 16)
    cuda.download(back, second)
    cuda.wait()
    assert back.view(np.uint8).tolist() == [0] * 16 + list(range(16)) + [0] * 32
    cuda.close()
    cuda.close()
    assert (library.memory, library.streams) == ({}, 0)


def test_a_card_that_is_full_is_an_error_with_its_name() -> None:
    library = Library(room=100)
    cuda = runtime(library)
    cuda.allocate(60)
    with pytest.raises(CudaError, match=r"cudaMalloc failed: cudaErrorMemoryAllocation \(2\)") as caught:
        cuda.allocate(60)
    assert caught.value.code == OUT_OF_MEMORY
    cuda.close()
    assert (library.memory, library.streams) == ({}, 0)


def test_a_card_that_is_not_there() -> None:
    with pytest.raises(CudaError, match="cudaSetDevice failed"):
        CudaRuntime(2, Library())  # type: ignore[arg-type]
