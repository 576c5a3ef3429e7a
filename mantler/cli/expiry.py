"""When a key ends, as people write it. Pure."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime

_UNITS_S = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_MAX_UNIX_S = int(datetime(9999, 12, 31, tzinfo=UTC).timestamp())

ALLOWED = "a time from now such as 90m, 12h, 30d or 8w, or a date such as 2030-12-31 that is not over"


def parse_expiry(text: str, now_unix_s: float) -> int:
    """Unix time in seconds. A date lasts until its end in UTC. Raises ``ValueError`` for what is past or unclear."""
    if match := re.fullmatch(r"([0-9]{1,6})([mhdw])", text):
        end = int(now_unix_s) + int(match[1]) * _UNITS_S[match[2]]
    elif re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        day = date.fromisoformat(text)
        end = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) + _UNITS_S["d"]
    else:
        raise ValueError(f"must be {ALLOWED}")
    if not now_unix_s < end <= _MAX_UNIX_S:
        raise ValueError(f"must be {ALLOWED}")
    return end


def show_time(unix_s: int) -> str:
    """``2030-12-31 23:59`` in UTC."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M")
