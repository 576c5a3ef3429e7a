"""Ids of models: ``name:tag``, for example ``smollm2:135m``.

A name and a tag are each lowercase letters, digits, ``.``, ``_`` and ``-``, start with a letter or a digit and end
without a dot, so both are safe as names of folders on every system.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from runtime_server.models.errors import PullError

DEFAULT_TAG = "latest"
MAX_PART_CHARS = 80
_PART = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9_-])?")
_QUANTIZATION = re.compile(r"[.-]((i?q[1-8]|t?q[12])_[a-z0-9_]+|bf16|f16|f32|fp16|mxfp4)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True, order=True)
class ModelName:
    """A checked id. ``str()`` of it is the id."""

    name: str
    tag: str = DEFAULT_TAG

    def __post_init__(self) -> None:
        for kind, part in (("name", self.name), ("tag", self.tag)):
            if len(part) > MAX_PART_CHARS or _PART.fullmatch(part) is None:
                raise PullError(
                    f"{part[: MAX_PART_CHARS + 1]!r} cannot be the {kind} of a model.",
                    hint=f"use 1 to {MAX_PART_CHARS} of a-z, 0-9, '.', '_' and '-', as in smollm2:135m",
                )

    @classmethod
    def parse(cls, text: str) -> ModelName:
        """Reads ``name`` or ``name:tag``; capitals become small letters. Raises :class:`PullError`."""
        name, colon, tag = text.lower().partition(":")
        return cls(name, tag if colon else DEFAULT_TAG)

    def __str__(self) -> str:
        return f"{self.name}:{self.tag}"

    @property
    def folder(self) -> Path:
        """Where the model lives below the store."""
        return Path(self.name) / self.tag

    @property
    def file_stem(self) -> str:
        """The id as the name of one file. No two ids share it: a part never holds ``+``."""
        return f"{self.name}+{self.tag}"


def derive(text: str) -> ModelName:
    """A sensible id for a file, folder or repository called ``text``; a quantisation at its end becomes the tag.

    >>> str(derive("SmolLM2-135M-Instruct.Q4_1"))
    'smollm2-135m-instruct:q4_1'
    """
    tag = DEFAULT_TAG
    match = _QUANTIZATION.search(text)
    if match is not None and match.start() > 0:
        text, tag = text[: match.start()], match.group(1)
    return ModelName(_slug(text), _slug(tag))


def _slug(text: str) -> str:
    slug = re.sub(r"[^a-z0-9._-]+", "-", text.lower())[:MAX_PART_CHARS]
    return slug.lstrip("._-").rstrip(".-") or "model"
