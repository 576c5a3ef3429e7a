"""How much memory this process may still take."""

from __future__ import annotations

from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")


def available_bytes(cgroup: Path = CGROUP) -> int:
    """Memory that can be had without swapping: the machine's, or the container's where that is less.

    ``cgroup`` is the mount of cgroup v2 (https://docs.kernel.org/admin-guide/cgroup-v2.html).
    """
    machine: int = psutil.virtual_memory().available
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
    except OSError:
        return machine
    return machine if limit == "max" else max(0, min(machine, int(limit) - used))
