"""Compiles the native operators beside their Python package; everything else stands in pyproject.toml.

The sources are compiled once per instruction set, and the library picks one when it is loaded, so a wheel runs on every
processor of its architecture.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = Path("runtime_server/native")
PER_INSTRUCTION_SET = ("linear", "attention", "embedding", "ops")
FLAGS = (
    "-O3 -std=c++17 -fPIC -fvisibility=hidden -ffp-contract=fast -fno-math-errno -fno-trapping-math -Wall -Wextra "
    "-Wno-psabi -Wno-unknown-pragmas -Wno-maybe-uninitialized"
).split()
X86 = {
    "avx512": ["-march=x86-64-v4", "-mavx512vnni"],
    "avx2": ["-march=x86-64-v3"],
}


def compiler() -> list[str]:
    """The C++ compiler: ``CXX``, one of the system, or the one in the package ``ziglang``."""
    named = os.environ.get("CXX")
    if named:
        return shlex.split(named)
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    try:
        import ziglang  # noqa: F401 - only whether it is there
    except ImportError:
        sys.exit("Mantler's native operators need a C++ compiler: install g++ or clang++, or `pip install ziglang`.")
    return [sys.executable, "-m", "ziglang", "c++"]


class BuildNative(build_ext):
    """Makes one shared library that no Python code imports."""

    def get_ext_filename(self, fullname: str) -> str:
        suffix = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
        return str(Path(*fullname.split("."))) + suffix

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        sets = {"baseline": []}
        if platform.machine().lower() in ("x86_64", "amd64"):
            sets |= X86
        with tempfile.TemporaryDirectory() as folder:
            jobs = [(SOURCES / "register.cpp", Path(folder, "register.o"), [])]
            for name, flags in sets.items():
                for source in PER_INSTRUCTION_SET:
                    output = Path(folder, f"{name}.{source}.o")
                    jobs.append((SOURCES / f"{source}.cpp", output, [*flags, f"-DMANTLER_ISA={name}"]))
            command = compiler()
            with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
                list(pool.map(lambda job: self._run([*command, *FLAGS, *job[2], "-c", job[0], "-o", job[1]]), jobs))
            self._run([*command, "-shared", *(job[1] for job in jobs), "-o", target])

    def _run(self, command: list[object]) -> None:
        words = [str(word) for word in command]
        self.announce(shlex.join(words), level=2)
        subprocess.run(words, check=True)  # noqa: S603 - the user's own compiler


setup(
    ext_modules=[Extension("runtime_server.native.libmantler_ops", sources=[])],
    cmdclass={"build_ext": BuildNative},
)
