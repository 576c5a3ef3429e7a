"""Operators for ONNX Runtime that are written for this decoder: C++, compiled when the package is built."""

from __future__ import annotations

import ctypes
import functools
import sys
from pathlib import Path

_SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
LIBRARY = Path(__file__).with_name(f"libmantler_ops{_SUFFIX}")
"""For ``SessionOptions.register_custom_ops_library``."""


@functools.cache
def instruction_set() -> str:
    """What the operators use on this processor: ``avx512_vnni``, ``avx2`` or ``baseline``.

    Raises ``OSError`` where the library is not there.
    """
    library = ctypes.CDLL(str(LIBRARY))
    library.mantler_instruction_set.restype = ctypes.c_char_p
    name: bytes = library.mantler_instruction_set()
    return name.decode()
