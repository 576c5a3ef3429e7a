"""JSON as it leaves the facade."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web


def encode_json(value: Any) -> bytes:
    """``value`` in UTF-8, as people read it in a terminal; half a surrogate pair stays a JSON escape."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")


def json_answer(value: Any, status: int = 200) -> web.Response:
    """A whole answer. It ends with a line break, so that a terminal's next prompt has a line of its own."""
    return web.Response(
        status=status, body=encode_json(value) + b"\n", content_type="application/json", charset="utf-8"
    )
