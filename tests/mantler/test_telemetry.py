"""Log lines."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from mantler.config import Settings
from mantler.telemetry import MAX_FIELD_CHARS, configure_logging, log_event

logger = logging.getLogger("facade.test")


@pytest.fixture(autouse=True)
def _restored_root() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


def lines(tmp_path: Path, log_format: str, log_level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    settings = Settings.model_validate({"home": tmp_path, "log_format": log_format, "log_level": log_level})
    configure_logging(settings, stream=stream)
    return stream


def test_json(tmp_path: Path) -> None:
    stream = lines(tmp_path, "json")
    log_event(logger, "request", status=200, model="a b\n", nothing=None, duration_s=0.12345678)
    logger.info("plain %d", 1)
    first, second = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert first.pop("time").endswith("Z")
    assert first.pop("level") == "info"
    assert first == {
        "logger": "facade.test",
        "event": "request",
        "status": 200,
        "model": "a b\n",
        "duration_s": 0.123457,
    }
    assert second["event"] == "plain 1"


def test_text(tmp_path: Path) -> None:
    stream = lines(tmp_path, "text")
    log_event(logger, "request", status=200, model='a "b"\nforged', empty="", long="x" * 5000)
    (line,) = stream.getvalue().splitlines()
    assert ' info facade.test: request status=200 model="a \\"b\\"\\nforged" empty=""' in line
    assert len(line) < MAX_FIELD_CHARS + 200


def test_tracebacks_and_levels(tmp_path: Path) -> None:
    for log_format in ("text", "json"):
        stream = lines(tmp_path, log_format, "warning")
        logger.info("unseen")
        try:
            raise ValueError("boom")
        except ValueError:
            logger.exception("failed\nbadly")
        assert "unseen" not in stream.getvalue()
        assert "ValueError: boom" in stream.getvalue()
        assert "failed\\nbadly" in stream.getvalue()
