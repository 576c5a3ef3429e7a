"""Logs: every process writes them to stderr, as lines for people or as JSON for machines.

A line is an event and its fields: ``log_event(logger, "request", status=200)``. Prompts, completions and keys are
never fields.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TextIO

from mantler.config import Settings

MAX_FIELD_CHARS = 256
"""What a client can put into a log line is bounded."""

_FIELDS = "mantler_fields"


def configure_logging(settings: Settings, *, stream: TextIO | None = None) -> None:
    """Sends this process's logs to ``stream`` (stderr), replacing what was set up before."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    # These speak of their own machinery at levels that would drown ours.
    for name in ("asyncio", "aiosqlite", "sqlalchemy", "filelock", "httpx", "urllib3"):
        logging.getLogger(name).setLevel(logging.WARNING)


def log_event(logger: logging.Logger, event: str, /, *, level: int = logging.INFO, **fields: object) -> None:
    """Logs ``event`` with ``fields``; those that are ``None`` are left out."""
    if logger.isEnabledFor(level):
        known = {name: _bounded(value) for name, value in fields.items() if value is not None}
        # The message holds the fields, too, for formatters that are not ours.
        line = event + "".join(f" {name}={_text(value)}" for name, value in known.items())
        logger.log(level, "%s", line, extra={_FIELDS: {"event": event, **known}})


class TextFormatter(logging.Formatter):
    """``2026-01-31T12:00:00.000Z info facade: request status=200``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and below it the traceback where there is one."""
        head = f"{_time(record)} {record.levelname.lower()} {record.name}:"
        # A message may quote a client: one record stays one line.
        message = record.getMessage().replace("\r", "\\r").replace("\n", "\\n")
        line = f"{head} {message}"
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """Time, level, logger and event, then the fields."""
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    fields: Mapping[str, object] = getattr(record, _FIELDS, {})
    return fields


def _bounded(value: object) -> object:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, str) and len(value) > MAX_FIELD_CHARS:
        return value[: MAX_FIELD_CHARS - 1] + "…"
    return value


def _text(value: object) -> str:
    text = str(value)
    plain = text.isprintable() and text and not any(c in ' "=\\' for c in text)
    return text if plain else json.dumps(text)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
