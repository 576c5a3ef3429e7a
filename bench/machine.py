"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil

EXTENSIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm", "sve")
"""Of the instruction set, those that decide how fast a model runs."""


def machine() -> dict[str, str]:
    """Names and values for a report."""
    cpu = Path("/proc/cpuinfo")
    described = described_cpu(cpu.read_text(encoding="utf-8")) if cpu.exists() else platform.processor()
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    return {
        "processor": f"{described}, {psutil.cpu_count(logical=False)} cores, {psutil.cpu_count()} threads",
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}, Python {platform.python_version()}",
        "load average before": load,
    }


def described_cpu(text: str) -> str:
    """The model and the extensions that ``/proc/cpuinfo`` names."""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    values = {name.strip().lower(): value.strip() for name, value in fields.items()}
    flags = set((values.get("flags") or values.get("features") or "").split())
    known = [name for name in EXTENSIONS if name in flags]
    return values.get("model name", platform.machine()) + (f" ({', '.join(known)})" if known else "")
