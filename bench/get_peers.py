"""Gets the benchmark's peers from the package index into .cache/peers; `make bench-peers` runs it.

llama-server is built from the sources of llama.cpp that the source distribution of llama-cpp-python holds; that takes
a C++ compiler, and about half an hour on two cores. OpenVINO GenAI gets a virtual environment. What is there already
is left as it is; remove .cache/peers to begin anew. It needs the standard library only.

Examples:
  python -m bench.get_peers
  python -m bench.get_peers --no-amx          # where llama-server dies of an illegal instruction or a refused AMX
  python -m bench.get_peers --only openvino
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

PEERS = Path(__file__).resolve().parent.parent / ".cache" / "peers"
LLAMA_CPP_PYTHON = "llama-cpp-python==0.3.36"
BUILD_TOOLS = ("cmake>=4,<5", "ninja>=1.13,<2")
OPENVINO = ("openvino-genai==2026.4.1.0", "aiohttp>=3.14,<4")
COMMAND_TIMEOUT_S = 7200.0
CMAKE_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
)
NO_AMX = "-U__AMX_INT8__"
"""The sources use AMX where the compiler defines this, which GGML_NATIVE makes it do on processors that have it."""


def get_llama_server(folder: Path, jobs: int, *, amx: bool) -> Path:
    """Builds it. Returns the program, a link next to which nothing else lies."""
    program = folder / "llama-server"
    if program.exists():
        return program
    tools = environment(folder / "build-tools", BUILD_TOOLS)
    source = unpacked(tools, folder) / "vendor" / "llama.cpp"
    build = folder / "llama-build"
    path = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    flags = list(CMAKE_FLAGS)
    if not amx:
        flags += [f"-DCMAKE_C_FLAGS={NO_AMX}", f"-DCMAKE_CXX_FLAGS={NO_AMX}"]
    run(str(tools / "cmake"), "-S", str(source), "-B", str(build), "-G", "Ninja", *flags, env=path)
    parallel = ("--parallel", str(jobs))
    run(str(tools / "cmake"), "--build", str(build), "--target", "llama-server", *parallel, env=path)
    program.symlink_to(build / "bin" / "llama-server")
    return program


def unpacked(tools: Path, folder: Path) -> Path:
    """The source distribution as a folder."""
    sources = folder / "sources"
    shutil.rmtree(sources, ignore_errors=True)
    download = ("download", "--no-deps", "--no-binary", ":all:", "--dest", str(sources), LLAMA_CPP_PYTHON)
    run(str(tools / "python"), "-m", "pip", *download)
    [archive] = sources.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(sources, filter="data")
    archive.unlink()
    [source] = sources.iterdir()
    return source


def get_openvino(folder: Path) -> Path:
    """Makes its environment. Returns the Python in it."""
    return environment(folder / "openvino", OPENVINO) / "python"


def environment(folder: Path, packages: tuple[str, ...]) -> Path:
    """A virtual environment with ``packages``. Returns the folder of its programs."""
    programs, stamp = folder / "bin", folder / ".installed"
    if not stamp.exists():
        run(sys.executable, "-m", "venv", "--clear", str(folder))
        run(str(programs / "python"), "-m", "pip", "install", "--quiet", *packages)
        stamp.touch()
    return programs


def run(*command: str, env: dict[str, str] | None = None) -> None:
    """Runs a command, whose output is shown. Exits where it fails."""
    print(f"+ {' '.join(command)}", file=sys.stderr, flush=True)
    try:
        code = subprocess.run(
            command, env={**os.environ, **(env or {})}, timeout=COMMAND_TIMEOUT_S, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        sys.exit(f"{Path(command[0]).name} took more than {COMMAND_TIMEOUT_S:g} s")
    if code:
        sys.exit(f"{Path(command[0]).name} failed with {code}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="get_peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--no-amx", action="store_true", help="build llama-server without AMX")
    parser.add_argument("--only", choices=("llama-server", "openvino"), help="get just this one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="of the compiler (default: one per core)")
    parser.add_argument("--folder", type=Path, default=PEERS, help="where to put them (default: .cache/peers)")
    given = parser.parse_args()
    folder = given.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if given.only != "llama-server":
        print(get_openvino(folder))
    if given.only != "openvino":
        print(get_llama_server(folder, given.jobs, amx=not given.no_amx))


if __name__ == "__main__":
    main()
