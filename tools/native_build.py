"""Compiles ``runtime_server/native`` into one shared library.

The sources are compiled once per instruction set and the library picks one when it is loaded, so a wheel runs on every
processor of its architecture. setup.py calls this while it builds the package; ``python tools/native_build.py``
makes the library of this checkout anew. Only the standard library is needed, and a C++ compiler: ``CXX``, one of the
system, or clang in the package ``ziglang``, which is asked for where there is no other.

``MANTLER_NATIVE_STRICT=1`` turns the compiler's warnings into errors.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path("runtime_server", "native")
"""Of the sources, from the project's root."""
LIBRARY = "libmantler_ops" + {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")

_PER_INSTRUCTION_SET = tuple(
    f"{name}.cpp"
    for name in ("linear", "linear_op", "attention", "attention_op", "embedding", "embedding_op", "sampling")
)
_ONCE = "register.cpp"
_FLAGS = [
    "-O3",
    "-std=c++17",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
]
# GCC takes its own header's "undefined" vectors for a mistake; clang does not know that warning.
_STRICT = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-warning-option", "-Wno-maybe-uninitialized"]
_AVX2 = ["-mavx2", "-mfma", "-mf16c"]
_AVX512 = ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx512vnni"]


def sources() -> list[str]:
    """The files to compile, from the project's root."""
    return [str(FOLDER / name) for name in (*_PER_INSTRUCTION_SET, _ONCE)]


def has_compiler() -> bool:
    """Whether this machine has a C++ compiler of its own."""
    return _system_compiler() is not None


def build(root: Path, target: Path) -> None:
    """Compiles the sources under ``root`` into ``target``. Exits where there is no compiler, or where it fails."""
    compiler = _system_compiler() or _packaged_compiler()
    flags = [*_FLAGS, *(["-fPIC"] if sys.platform != "win32" else [])]
    if os.environ.get("MANTLER_NATIVE_STRICT") == "1":
        flags += _STRICT
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        jobs = {Path(folder, "register.o"): [str(root / FOLDER / _ONCE)]}
        for name, features in _instruction_sets().items():
            for source in _PER_INSTRUCTION_SET:
                words = [*features, f"-DMANTLER_ISA={name}", str(root / FOLDER / source)]
                jobs[Path(folder, f"{name}.{source}.o")] = words
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            commands = ([*compiler, *flags, *words, "-c", "-o", str(output)] for output, words in jobs.items())
            list(pool.map(_run, commands))
        # Moved into place, since a process may have the old one loaded.
        fresh = target.with_name(f"{target.name}.{os.getpid()}")
        strip = ["-s"] if sys.platform == "linux" else []
        _run([*compiler, "-shared", *strip, *map(str, jobs), "-o", str(fresh)])
        fresh.replace(target)


def _instruction_sets() -> dict[str, list[str]]:
    sets: dict[str, list[str]] = {"baseline": []}
    if platform.machine().lower() in ("x86_64", "amd64"):
        sets |= {"avx2": _AVX2, "avx512": _AVX2 + _AVX512, "avx512_bf16": [*_AVX2, *_AVX512, "-mavx512bf16"]}
    return sets


def _system_compiler() -> list[str] | None:
    named = os.environ.get("CXX")
    if named:
        return shlex.split(named)
    return next(([name] for name in ("c++", "g++", "clang++") if shutil.which(name)), None)


def _packaged_compiler() -> list[str]:
    if importlib.util.find_spec("ziglang") is None:
        sys.exit("Mantler's native operators need a C++ compiler: install g++ or clang++, or `pip install ziglang`.")
    return [sys.executable, "-m", "ziglang", "c++"]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, check=False)  # noqa: S603 - the user's own compiler
    if done.returncode:
        sys.exit(f"The C++ compiler failed ({done.returncode}): {shlex.join(command)}")


if __name__ == "__main__":
    project = Path(__file__).resolve().parents[1]
    build(project, project / FOLDER / LIBRARY)
