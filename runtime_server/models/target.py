"""What a person asks to pull: a catalogue name, a path, or a repository on the hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from runtime_server.models.catalogue import HubRepo, WheelFile, look_up
from runtime_server.models.errors import PullError
from runtime_server.models.names import ModelName, derive

_HUB = re.compile(r"([A-Za-z0-9][\w.-]{0,95})/([A-Za-z0-9][\w.-]{0,95})(?:@([\w.][\w./-]{0,199}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class LocalPath:
    """A ``.gguf`` file or a Hugging Face folder on this machine."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class Target:
    """Where a model comes from, and the id that it gets."""

    name: ModelName
    origin: WheelFile | HubRepo | LocalPath


def resolve(text: str, as_name: str | None = None) -> Target:
    """Understands the NAME of ``mantler pull NAME --as AS_NAME``.

    Raises:
        PullError: ``text`` is no catalogue name, existing path or ``hf:ORG/REPO[@REV]``, or an id is not valid.
    """
    if text.startswith("hf:"):
        match = _HUB.fullmatch(text.removeprefix("hf:"))
        if match is None or ".." in text:
            raise PullError(f"{text!r} does not name a repository.", hint="write hf:ORG/REPO or hf:ORG/REPO@REVISION")
        origin: WheelFile | HubRepo | LocalPath = HubRepo(f"{match[1]}/{match[2]}", match[3] or "main")
        derived = derive(match[2])
    elif _looks_like_path(text):
        path = Path(text).expanduser().absolute()
        if not path.exists():
            raise PullError(f"There is no file or folder {text!r}.")
        origin, derived = LocalPath(path), derive(path.resolve().name if path.is_dir() else path.stem)
    else:
        derived = ModelName.parse(text)
        origin = look_up(str(derived), text, "A path to a .gguf file or folder and hf:ORG/REPO work too").origin
    return Target(derived if as_name is None else ModelName.parse(as_name), origin)


def _looks_like_path(text: str) -> bool:
    return "/" in text or "\\" in text or text.startswith((".", "~")) or text.lower().endswith(".gguf")
