"""What ``mantler doctor`` looks at. Each check returns findings and never raises for what it was made to find."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from mantler import __version__
from mantler.cli import ports
from mantler.cli.errors import CliError
from mantler.cli.terminal import human_bytes
from mantler.cli.version import installed
from mantler.errors import MantlerError
from mantler.memory import available_bytes

MIN_MEMORY_BYTES = 2 * 10**9
MIN_DISK_BYTES = 2 * 10**9
NEEDED_PACKAGES = ("grpcio", "grpcio-health-checking", "grpcio-reflection", "aiohttp", "transformers", "gguf", "onnx")


class Status(Enum):
    """How good a finding is. FAIL means that Mantler cannot work."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    check: str
    status: Status
    detail: str
    hint: str | None = None


def versions() -> Iterable[Finding]:
    """Python, Mantler and the packages that it needs."""
    yield Finding("mantler", Status.OK, f"{__version__}, Python {platform.python_version()} on {platform.platform()}")
    for package in NEEDED_PACKAGES:
        if installed(package) is None:
            yield Finding("packages", Status.FAIL, f"{package} is not installed", "pip install --upgrade mantler")


def onnx_runtime() -> Iterable[Finding]:
    """ONNX Runtime and its providers."""
    try:
        from runtime_server.backends import providers

        version, names = providers.installed()
    except ImportError as error:
        yield Finding("onnxruntime", Status.FAIL, f"cannot be imported: {error}", "pip install 'mantler[cpu]'")
        return
    short = ", ".join(name.removesuffix("ExecutionProvider") for name in names)
    yield Finding("onnxruntime", Status.OK, f"{version} with {short}")


def processor() -> Iterable[Finding]:
    """CPU cores and the instructions that matter to integer arithmetic."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("cpu", Status.OK, f"{cores} cores for this process, {platform.machine()}{_instructions()}")


def operators() -> Iterable[Finding]:
    """Mantler's own operators, and the instruction set that they use."""
    from runtime_server import native

    try:
        name = native.instruction_set()
    except MantlerError as error:
        yield Finding("operators", Status.FAIL, error.message.rstrip("."), "pip install --force-reinstall mantler")
        return
    if name == "baseline":
        hint = "models run several times faster on a processor with AVX2 or AVX-512 VNNI"
        yield Finding("operators", Status.WARN, "no faster instruction set than the baseline is in use", hint)
    else:
        yield Finding("operators", Status.OK, f"compiled for {name}")


def memory(available: Callable[[], int] = available_bytes) -> Iterable[Finding]:
    """Memory that is free for models."""
    free = available()
    detail = f"{human_bytes(free)} free"
    if free < MIN_MEMORY_BYTES:
        yield Finding("memory", Status.WARN, detail, "stop other programs, or lower --max-batch and --kv-memory-mb")
    else:
        yield Finding("memory", Status.OK, detail)


def home(folder: Path) -> Iterable[Finding]:
    """Whether MANTLER_HOME can be written to, and the room on its disk."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        detail = f"{folder} cannot be written to by this user"
        yield Finding("home", Status.FAIL, detail, "choose another folder with --home or MANTLER_HOME")
        return
    free = shutil.disk_usage(there).free
    detail = f"{folder} with {human_bytes(free)} free"
    if free < MIN_DISK_BYTES:
        yield Finding("home", Status.WARN, detail, "make room, or choose another folder with --home or MANTLER_HOME")
    else:
        yield Finding("home", Status.OK, detail)


def model_store(models_dir: Path, wanted: Sequence[str]) -> Iterable[Finding]:
    """The stored models, and whether those that a runtime would load are among them."""
    from runtime_server.models.errors import PullError
    from runtime_server.models.store import ModelStore

    store = ModelStore(models_dir)
    found = [manifest.id for manifest in store.list()]
    yield Finding("models", Status.OK, ", ".join(found) if found else "none stored")
    for model_id in wanted:
        try:
            manifest = store.get(model_id)
        except PullError as error:
            yield Finding("models", Status.FAIL, error.message.rstrip("."), error.hint)
            continue
        if manifest is None:
            hint = f"`mantler pull {model_id}` or `mantler up` fetches it"
            yield Finding("models", Status.WARN, f"{model_id} is not stored", hint)


def service(name: str, address: str, flag: str, serves: Callable[[], bool]) -> Iterable[Finding]:
    """Whether a process serves at ``address``; if none, whether its port is free."""
    if serves():
        yield Finding(name, Status.OK, f"serves at {address}")
        return
    try:
        ports.claim(address, flag)
    except CliError as error:
        yield Finding(name, Status.FAIL, f"does not serve, and {error.message}", error.hint)
    else:
        yield Finding(name, Status.OK, f"not running; {address} is free", _not_here(flag))


def _not_here(flag: str) -> str:
    key = flag.removeprefix("--")
    return f"`mantler up` starts it; if it serves elsewhere, say where: {flag} HOST:PORT, or {key} in config.toml"


def _instructions() -> str:
    info = Path("/proc/cpuinfo")
    if sys.platform != "linux" or not info.exists():
        return ""
    flags = next((line for line in info.read_text().splitlines() if line.startswith(("flags", "Features"))), "").split()
    known = [
        name
        for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "asimddp", "i8mm")
        if name in flags
    ]
    return f" with {', '.join(known)}" if known else ""
