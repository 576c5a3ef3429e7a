"""Operators for ONNX Runtime that are written for this decoder: C++, compiled when the package is built."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import sys
from pathlib import Path

from mantler.errors import ErrorCode, MantlerError

logger = logging.getLogger(__name__)

LIBRARY = Path(__file__).with_name("libmantler_ops" + {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so"))
ONE_SET = "MANTLER_INSTRUCTION_SET"
"""Environment variable that names the one instruction set to use, for tests and comparisons."""


def library() -> Path:
    """The library, for ``SessionOptions.register_custom_ops_library``.

    Raises ``MantlerError`` where it is not there or was made for another machine.
    """
    instruction_set()
    return LIBRARY


@functools.cache
def instruction_set() -> str:
    """What the operators use on this processor: ``avx512_bf16``, ``avx512_vnni``, ``avx2`` or ``baseline``.

    Raises ``MantlerError`` as :func:`library` does, and where the environment names a set that cannot be used.
    """
    try:
        loaded = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        logger.error("cannot load %s: %s", LIBRARY, error)
        what = "were made for another machine" if LIBRARY.exists() else "have not been compiled"
        raise _unusable(f"{what}: install Mantler again") from error
    loaded.mantler_instruction_set.restype = ctypes.c_char_p
    name = bytes(loaded.mantler_instruction_set()).decode()
    if os.environ.get(ONE_SET, name) != name:
        raise _unusable(f"do not have the instruction set that {ONE_SET} names here; unset it to use {name}")
    return name


def _unusable(what: str) -> MantlerError:
    return MantlerError(ErrorCode.INTERNAL_ERROR, f"Mantler's native operators {what}.")
