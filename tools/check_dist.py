"""Checks what ``python -m build`` has made: ``python tools/check_dist.py FOLDER``.

The wheel is bound to a platform and to no version of Python, and holds the compiled operators, which load. The source
archive holds what they are compiled from, and nothing that was compiled.
"""

from __future__ import annotations

import ctypes
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

SOURCES = ("setup.py", "tools/build_backend.py", "tools/native_build.py", "runtime_server/native/simd.h")


def check_wheel(path: Path) -> None:
    """Exits with what is wrong."""
    if "-py3-none-" not in path.name or path.name.endswith("-any.whl"):
        sys.exit(f"{path.name} should be py3-none-PLATFORM")
    with zipfile.ZipFile(path) as wheel, tempfile.TemporaryDirectory() as folder:
        compiled = [name for name in wheel.namelist() if "libmantler_ops" in name]
        if len(compiled) != 1 or Path(compiled[0]).parent != Path("runtime_server/native"):
            sys.exit(f"{path.name} should hold one library in runtime_server/native, not {compiled}")
        if any(name.endswith((".cpp", ".h")) for name in wheel.namelist()):
            sys.exit(f"{path.name} holds sources of the operators")
        ctypes.CDLL(wheel.extract(compiled[0], folder)).mantler_instruction_set()


def check_sources(path: Path) -> None:
    """Exits with what is wrong."""
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    here = {str(path) for path in Path("runtime_server/native").glob("*.cpp")}
    missing = {*SOURCES, *here} - names
    if missing or any("libmantler_ops" in name for name in names):
        sys.exit(f"{path.name} lacks {sorted(missing)} or holds a compiled library")


if __name__ == "__main__":
    (wheel_path,), (sources_path,) = (list(Path(sys.argv[1]).glob(pattern)) for pattern in ("*.whl", "*.tar.gz"))
    check_wheel(wheel_path)
    check_sources(sources_path)
    print(f"{wheel_path.name} and {sources_path.name} hold what they should")
