"""Log lines of the commands that people run; serving processes have :mod:`mantler.telemetry`."""

from __future__ import annotations

import logging
import sys


class BriefFormatter(logging.Formatter):
    """The message, and what an exception says without its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line = f"{record.levelname.lower()}: {record.getMessage()}"
        error = record.exc_info[1] if record.exc_info else None
        return f"{line} ({type(error).__name__}: {error})" if error else line


def configure_brief() -> None:
    """Sends warnings and errors to stderr, a line each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(BriefFormatter())
    logging.basicConfig(level="WARNING", handlers=[handler], force=True)
