"""Generates the protobuf and gRPC stubs under ``mantler/v1`` from ``proto/``.

Run it as ``make proto``. With ``--out DIR`` it writes elsewhere, which is how a test sees whether the stubs
that are checked in have drifted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent


def generate(out: Path) -> None:
    """Writes the stubs below ``out``; raises ``RuntimeError`` if protoc fails."""
    out.mkdir(parents=True, exist_ok=True)
    proto = ROOT / "proto"
    files = sorted(str(path.relative_to(proto)) for path in proto.rglob("*.proto"))
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{proto}", f"-I{well_known}"]
    arguments += [f"--{kind}_out={out}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    # The plugins lie beside the Python that runs us, which need not be on the PATH.
    scripts = Path(sys.executable).parent
    arguments += [f"--plugin={plugin}={scripts / plugin}" for plugin in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    if protoc.main([*arguments, *files]) != 0:
        raise RuntimeError("protoc failed; its messages stand above")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT, help="folder that gets mantler/v1 (default: the project)")
    try:
        generate(parser.parse_args().out)
    except RuntimeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
