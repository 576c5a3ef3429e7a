"""What is asked of a server, and what one client saw of its answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

DIGITS = 5
"""Of stored times, in seconds: 10 µs."""


@dataclass(frozen=True, slots=True)
class Request:
    """One greedy chat completion of exactly ``max_tokens`` tokens."""

    system: str
    user: str
    max_tokens: int
    label: str = ""
    """What the request is within its workload. Figures are made for each label."""


@dataclass(slots=True)
class Stream:
    """What one client saw. Times in seconds, of one clock."""

    started: float
    label: str = ""
    pieces: list[float] = field(default_factory=list)
    """When each piece of text came."""
    ended: float = 0.0
    prompt_tokens: int = 0
    """This and the next two as the server counts them."""
    cached_tokens: int = 0
    tokens: int = 0
    error: str = ""

    @property
    def first(self) -> float:
        """Time to the first piece."""
        return self.pieces[0] - self.started

    def gaps(self, window: tuple[float, float] | None = None) -> list[float]:
        """Times between pieces; with ``window``, those that end within it."""
        return [
            later - earlier
            for earlier, later in zip(self.pieces, self.pieces[1:], strict=False)
            if window is None or window[0] <= later <= window[1]
        ]

    def since(self, start: float) -> dict[str, Any]:
        """A JSON object with times that count from ``start``."""
        return {
            **asdict(self),
            "started": round(self.started - start, DIGITS),
            "pieces": [round(at - start, DIGITS) for at in self.pieces],
            "ended": round(self.ended - start, DIGITS),
        }


Ask = Callable[[Request, Callable[[], None]], Awaitable[Stream]]
"""Sends a request and collects its answer; calls the function at the first piece. A failure is the stream's error."""


def checked(stream: Stream, request: Request) -> Stream:
    """``stream`` under its label, with an error unless it has the tokens that were asked for."""
    stream.label = request.label
    if not stream.error and stream.tokens != request.max_tokens:
        stream.error = f"{stream.tokens} tokens, not {request.max_tokens}"
    if not stream.error and not stream.pieces:
        stream.error = "no text"
    return stream


def busy_s(streams: Iterable[Stream]) -> float:
    """How long at least one of ``streams`` was open, in seconds."""
    total, until = 0.0, float("-inf")
    for start, end in sorted((stream.started, stream.ended) for stream in streams):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total
