"""What is known of one request while it is served: it names the request, and ends as one line of the log."""

from __future__ import annotations

import logging
import time
import uuid
from dataclasses import dataclass, field
from http import HTTPStatus

from mantler.errors import ErrorCode
from mantler.messages import MAX_REQUEST_ID_CHARS
from mantler.telemetry import log_event

CLIENT_GONE = 499
"""Status of the log line of a request whose client left."""

_log = logging.getLogger("facade.access")


@dataclass(slots=True)
class Exchange:
    """One request and its answer. Holds no prompt, no completion and no key."""

    request_id: str
    method: str
    path: str
    started_s: float = field(default_factory=time.monotonic)
    key_id: str | None = None
    model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    first_token_s: float | None = None
    """Time to the first token."""
    error: ErrorCode | None = None
    whole_status: int | None = None
    """Status of an answer whose last event is on its way: a client that leaves from then on missed nothing."""
    headers: dict[str, str] = field(default_factory=dict)
    """Headers that the answer gets, whatever it will be."""

    @property
    def tokens(self) -> int:
        """Of prompts and completions, so far."""
        return (self.prompt_tokens or 0) + (self.completion_tokens or 0)

    def count_tokens(self, number: int) -> None:
        """Adds generated tokens; the first one marks the first token. An echoed prompt has none."""
        if number == 0:
            return
        if self.completion_tokens is None:
            self.completion_tokens = 0
            self.first_token_s = time.monotonic() - self.started_s
        self.completion_tokens += number

    def log(self, status: int) -> None:
        """Writes the line. Whoever asks every second whether the process is well would drown the others."""
        quiet = self.path == "/health" and status == HTTPStatus.OK
        log_event(
            _log,
            "request",
            level=logging.DEBUG if quiet else logging.INFO,
            request_id=self.request_id,
            method=self.method,
            path=self.path,
            status=status,
            error=None if self.error is None else self.error.value,
            key_id=self.key_id,
            model=self.model,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            duration_s=time.monotonic() - self.started_s,
            first_token_s=self.first_token_s,
        )


def request_id(given: str) -> str:
    """``given`` if it can name a request, a new name otherwise."""
    usable = 1 <= len(given) <= MAX_REQUEST_ID_CHARS and given.isascii() and given.isprintable()
    return given if usable else f"req_{uuid.uuid4().hex}"
