"""What this machine's processor can do."""

from __future__ import annotations

import platform
from pathlib import Path

_VNNI = {"avx512_vnni", "avx_vnni", "amx_int8"}


def integer_products_are_exact(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether unsigned times signed 8-bit products add up without saturating.

    On x86 without VNNI they go through ``vpmaddubsw``, which saturates at 16 bits (ONNX Runtime, "Quantize ONNX
    models", on ``reduce_range``).
    """
    if platform.machine() not in {"x86_64", "AMD64"}:
        return True
    try:
        text = cpuinfo.read_text()
    except OSError:
        return False
    return any(_VNNI & set(line.split()) for line in text.splitlines() if line.startswith("flags"))
