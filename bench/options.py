"""Values of command-line flags."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence


def positive(text: str) -> int:
    """A number from 1 on."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def levels(text: str) -> tuple[int, ...]:
    """Numbers of streams, separated by commas."""
    return tuple(positive(part) for part in text.split(","))


def among(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Reads names separated by commas, out of ``known``."""

    def names(text: str) -> tuple[str, ...]:
        found = tuple(text.split(","))
        if unknown := set(found) - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: must be among {', '.join(known)}")
        return found

    return names


def add_openvino_options(parser: argparse.ArgumentParser) -> None:
    """The flags that both of OpenVINO's programs take: those of ``bench.openvino_engine.EngineSettings``."""
    parser.add_argument("--gguf", required=True, help="the model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--slots", type=int, default=32, help="requests that run at the same time")
    parser.add_argument("--prefix-cache", action="store_true", help="share the prefixes of prompts")
