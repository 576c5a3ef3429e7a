"""What NVIDIA's driver says of its cards, asked through its library: no CUDA package is needed for that.

The calls are those of the CUDA driver API (https://docs.nvidia.com/cuda/cuda-driver-api). ``CUDA_VISIBLE_DEVICES``
hides cards from it, as from every program that uses CUDA.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
"""It comes with the driver, not with CUDA."""

_NO_DEVICE = 100
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
_NAME_BYTES = 256


class NoDriverError(Exception):
    """This machine has no driver of NVIDIA's."""


class CudaDriverError(Exception):
    """The driver is there and refuses. The message names the call and the driver's own name of the fault."""


@dataclass(frozen=True, slots=True)
class Card:
    """One graphics card."""

    index: int
    """As ``cuda:N`` names it."""
    name: str
    compute_capability: tuple[int, int]
    total_bytes: int
    free_bytes: int
    """Now; a context of this process is counted as used while it lives."""

    def __str__(self) -> str:
        major, minor = self.compute_capability
        free, total = self.free_bytes / 1e9, self.total_bytes / 1e9
        return f"cuda:{self.index} {self.name} ({major}.{minor}), {free:.1f} of {total:.1f} GB free"


@dataclass(frozen=True, slots=True)
class Driver:
    """The driver and its cards."""

    cuda_version: tuple[int, int]
    """The newest CUDA that the driver can serve."""
    cards: tuple[Card, ...]


def cuda_version(number: int) -> tuple[int, int]:
    """The driver's number of a version, ``1000 × major + 10 × minor``, as the two."""
    return number // 1000, number % 1000 // 10


def read_driver(library: str = LIBRARY) -> Driver:
    """Asks the driver behind ``library``. Raises :class:`NoDriverError` and :class:`CudaDriverError`."""
    try:
        calls = _Calls(ctypes.CDLL(library))
    except OSError as error:
        raise NoDriverError(f"{library} cannot be loaded") from error
    version, count = ctypes.c_int(), ctypes.c_int()
    calls.call("cuDriverGetVersion", ctypes.byref(version))
    if calls.call("cuInit", ctypes.c_uint(0), but=(_NO_DEVICE,)) == _NO_DEVICE:
        return Driver(cuda_version(version.value), ())
    calls.call("cuDeviceGetCount", ctypes.byref(count))
    return Driver(cuda_version(version.value), tuple(_card(calls, index) for index in range(count.value)))


class _Calls:
    """The library's functions, each of which returns a ``CUresult``."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def call(self, name: str, *arguments: object, but: tuple[int, ...] = ()) -> int:
        """Calls ``name``. Raises :class:`CudaDriverError` for a result that is neither 0 nor in ``but``."""
        try:
            function = self._library[name]
        except AttributeError as error:
            raise CudaDriverError(f"the driver has no {name}") from error
        result = int(function(*arguments))
        if result and result not in but:
            raise CudaDriverError(f"{name} failed with {self._fault(result)}")
        return result

    def _fault(self, result: int) -> str:
        name = ctypes.c_char_p()
        self._library["cuGetErrorName"](ctypes.c_int(result), ctypes.byref(name))
        return f"{name.value.decode()} ({result})" if name.value else str(result)


def _card(calls: _Calls, index: int) -> Card:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    calls.call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(index))
    calls.call("cuDeviceGetName", name, ctypes.c_int(_NAME_BYTES), device)
    calls.call("cuDeviceGetAttribute", ctypes.byref(major), ctypes.c_int(_CAPABILITY_MAJOR), device)
    calls.call("cuDeviceGetAttribute", ctypes.byref(minor), ctypes.c_int(_CAPABILITY_MINOR), device)
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    with _context(calls, device):
        calls.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    return Card(index, name.value.decode(errors="replace"), (major.value, minor.value), total.value, free.value)


@contextmanager
def _context(calls: _Calls, device: ctypes.c_int) -> Iterator[None]:
    """The card's primary context, which the question for free memory needs, made current."""
    context = ctypes.c_void_p()
    calls.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    try:
        calls.call("cuCtxPushCurrent_v2", context)
        try:
            yield
        finally:
            calls.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
    finally:
        calls.call("cuDevicePrimaryCtxRelease_v2", device)
