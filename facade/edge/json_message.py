"""Protobuf messages out of JSON and back, in protobuf's mapping (https://protobuf.dev/programming-guides/json/)."""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor

from google.protobuf import json_format
from google.protobuf.message import Message

from mantler.errors import ErrorCode, MantlerError

MAX_BYTES = 4 * 2**20
"""Of a body. protobuf reads JSON in Python, half a second for each MB of small values; REST and gRPC take larger
requests."""
_SHORT_BYTES = 16 * 2**10
"""What is read in a moment is read at once."""

_UNKNOWN = re.compile(r'has no field named "([^"]{1,100})"')
_PLACE = re.compile(r' at "?[A-Z]\w*((?:\.\w{1,100}(?:\[\d+\])?){0,20})')
_FAILED = re.compile(r"Failed to parse (\w{1,100}) field")


class MessageReader:
    """Reads messages. Long ones wait for each other in a thread, so that streams go on meanwhile."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "json-message")

    def close(self) -> None:
        """Ends the thread after what it reads now."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def read(self, body: bytes, kind: type[Message]) -> Message:
        """The message. Raises INVALID_REQUEST, naming the field where that is what is wrong."""
        if len(body) <= _SHORT_BYTES:
            return parsed(body, kind)
        return await asyncio.get_running_loop().run_in_executor(self._thread, parsed, body, kind)


def parsed(body: bytes, kind: type[Message]) -> Message:
    """The same, here and now."""
    message = kind()
    try:
        if body.lstrip()[:1] != b"{":
            raise json_format.ParseError("no object")
        json_format.Parse(body, message)
    except (json_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        field = _field(str(error))
        wrong = f"{field}: is not a field, or its value is not one," if field else "The body is not the JSON object"
        raise MantlerError(
            ErrorCode.INVALID_REQUEST,
            f"{wrong} of a {kind.DESCRIPTOR.full_name} in protobuf's JSON mapping.",
            param=field,
        ) from error
    return message


def as_json(message: Message) -> bytes:
    """``message`` in one line."""
    return json_format.MessageToJson(message, indent=None, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _field(problem: str) -> str | None:
    """The field that protobuf's error is about, as ``chat.messages[0].role``, as far as it says that."""
    place = _PLACE.search(problem)
    path = place[1].removeprefix(".") if place else ""
    names = _UNKNOWN.findall(problem) or _FAILED.findall(problem)
    if not path:
        return ".".join(names) or None
    known = re.split(r"\W+", path)
    if names and names[-1] not in known:
        return f"{path}.{names[-1]}"
    return path
