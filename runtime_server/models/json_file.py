"""JSON objects of model folders, read with checks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime_server.models.errors import PullError

MAX_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class JsonFile:
    """An object in a file called ``name``."""

    name: str
    values: dict[str, Any]

    @classmethod
    def need(cls, path: Path) -> JsonFile:
        """Reads ``path``. Raises :class:`PullError` where it is missing, too large or not an object."""
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except FileNotFoundError as error:
            raise PullError(f"{path.name} is missing.") from error
        if len(data) > MAX_BYTES:
            raise PullError(f"{path.name} is larger than {MAX_BYTES >> 20} MiB.")
        try:
            values = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise PullError(f"{path.name} is not JSON.") from error
        if not isinstance(values, dict):
            raise PullError(f"{path.name} does not hold a JSON object.")
        return cls(path.name, values)

    @classmethod
    def find(cls, path: Path) -> JsonFile:
        """Like :meth:`need`, but empty where the file does not exist."""
        return cls.need(path) if path.exists() else cls(path.name, {})

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """The value of ``key``, which must be of ``kind`` (``float`` takes whole numbers too); null is absence."""
        value = self.values.get(key)
        if value is None:
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise PullError(f"{self.name}: {key!r} is not {kind.__name__}.")
        return value

    def need_value(self, key: str, kind: type) -> Any:
        """Like :meth:`get`, for a key that must be there."""
        value = self.get(key, kind)
        if value is None:
            raise PullError(f"{self.name} lacks {key!r}.")
        return value

    def section(self, key: str) -> JsonFile:
        """The object under ``key``, empty where there is none."""
        return JsonFile(f"{self.name}: {key}", self.get(key, dict, {}))
