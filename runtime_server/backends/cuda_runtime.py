"""CUDA's runtime library: memory of one card, and copies in the order of one stream.

Loaded by name, since it comes with ONNX Runtime's own packages (:mod:`runtime_server.backends.providers`). Use it from
one thread: the card that calls mean is a property of the thread.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

LIBRARY = "libcudart.so.13"
OUT_OF_MEMORY = 2
"""``cudaErrorMemoryAllocation``"""
_TO_CARD, _FROM_CARD, _ON_CARD = 1, 2, 3
"""``cudaMemcpyKind``"""


class CudaError(RuntimeError):
    """A call failed. ``code`` is CUDA's."""

    def __init__(self, call: str, code: int, name: str) -> None:
        super().__init__(f"{call} failed: {name} ({code})")
        self.code = code


class CudaRuntime:
    """One card and one stream on it.

    Args:
        device_id: as CUDA counts the cards.
        library: the runtime library.

    Raises: ``OSError`` where the library is missing, :class:`CudaError`.
    """

    def __init__(self, device_id: int, library: ctypes.CDLL | None = None) -> None:
        self._library = library or ctypes.CDLL(LIBRARY)
        self._library.cudaGetErrorName.restype = ctypes.c_char_p
        self._allocated: list[int] = []
        self._pinned: list[int] = []
        self._call("cudaSetDevice", ctypes.c_int(device_id))
        stream = ctypes.c_void_p()
        # 1: it does not wait for the default stream, which ONNX Runtime may use while it loads.
        self._call("cudaStreamCreateWithFlags", ctypes.byref(stream), ctypes.c_uint(1))
        self.stream: int = stream.value or 0
        """Its handle."""

    def allocate(self, size: int) -> int:
        """The address of ``size`` bytes on the card, all zeros. They are freed by :meth:`close`."""
        pointer = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(size))
        address = pointer.value or 0
        self._allocated.append(address)
        # What was never written is multiplied by zero in places, and must be a number for that.
        self._call("cudaMemsetAsync", pointer, ctypes.c_int(0), ctypes.c_size_t(size), self._handle)
        return address

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """``size`` bytes of the processor's memory that the card reads and writes by itself; until :meth:`close`."""
        pointer = ctypes.c_void_p()
        self._call("cudaMallocHost", ctypes.byref(pointer), ctypes.c_size_t(size))
        address = pointer.value or 0
        self._pinned.append(address)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Copies pinned memory to the card, some time before what is launched after it runs."""
        self._copy(address, array.ctypes.data, array.nbytes, _TO_CARD)

    def download(self, array: NDArray[Any], address: int) -> None:
        """Copies from the card to pinned memory; it is there after :meth:`wait`."""
        self._copy(array.ctypes.data, address, array.nbytes, _FROM_CARD)

    def copy(self, to: int, source: int, size: int) -> None:
        """Copies on the card."""
        self._copy(to, source, size, _ON_CARD)

    def wait(self) -> None:
        """Returns once everything that was launched is done."""
        self._call("cudaStreamSynchronize", self._handle)

    def close(self) -> None:
        """Frees all memory and the stream. What ran is over then."""
        for call, addresses in (("cudaFree", self._allocated), ("cudaFreeHost", self._pinned)):
            while addresses:
                self._call(call, ctypes.c_void_p(addresses.pop()))
        if self.stream:
            self._call("cudaStreamDestroy", self._handle)
            self.stream = 0

    @property
    def _handle(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.stream)

    def _copy(self, to: int, source: int, size: int, kind: int) -> None:
        pointers = ctypes.c_void_p(to), ctypes.c_void_p(source)
        self._call("cudaMemcpyAsync", *pointers, ctypes.c_size_t(size), ctypes.c_int(kind), self._handle)

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            raise CudaError(name, code, self._library.cudaGetErrorName(ctypes.c_int(code)).decode())
