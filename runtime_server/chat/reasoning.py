"""Keeps a model's reasoning apart from its answer."""

from __future__ import annotations

from enum import Enum, auto

OPENING = "<think>"
CLOSING = "</think>"


class _Place(Enum):
    BEFORE = auto()
    INSIDE = auto()
    BEHIND = auto()
    ANSWER = auto()


class ReasoningSplitter:
    """Splits text at ``<think>`` and ``</think>``. How the text is cut into pieces makes no difference.

    Reasoning stands at the beginning of an output or nowhere. White space around the tags is dropped.

    Args:
        opened: whether the prompt ends with the opening tag, so that the output begins inside.
    """

    def __init__(self, *, opened: bool) -> None:
        self._place = _Place.INSIDE if opened else _Place.BEFORE
        self._held = ""
        self._started = False

    @property
    def inside(self) -> bool:
        """Whether the next text is reasoning, as far as is known."""
        return self._place is _Place.INSIDE

    @property
    def holds(self) -> int:
        """Characters that wait for what follows to be known."""
        return len(self._held)

    def feed(self, text: str) -> tuple[str, str]:
        """Takes the next piece; returns the reasoning and the answer that are certain now."""
        if self._place is _Place.ANSWER:
            return "", text
        self._held += text
        reasoning = answer = ""
        if self._place is _Place.BEFORE:
            answer = self._before()
        if self._place is _Place.INSIDE:
            reasoning = self._inside()
        if self._place is _Place.BEHIND:
            answer = self._held.lstrip()
            self._held = ""
            if answer:
                self._place = _Place.ANSWER
        return reasoning, answer

    def flush(self) -> tuple[str, str]:
        """What was held back. The stream is over after it."""
        held, self._held = self._held, ""
        return (held.rstrip(), "") if self.inside else ("", held)

    def _before(self) -> str:
        text = self._held.lstrip()
        if text.startswith(OPENING):
            self._held = text.removeprefix(OPENING)
            self._place = _Place.INSIDE
        elif not OPENING.startswith(text):
            answer, self._held = self._held, ""
            self._place = _Place.ANSWER
            return answer
        return ""

    def _inside(self) -> str:
        if not self._started:
            self._held = self._held.lstrip()
            self._started = bool(self._held)
        at = self._held.find(CLOSING)
        if at >= 0:
            reasoning = self._held[:at].rstrip()
            self._held = self._held[at + len(CLOSING) :]
            self._place = _Place.BEHIND
            return reasoning
        kept = next((n for n in range(len(CLOSING) - 1, 0, -1) if self._held.endswith(CLOSING[:n])), 0)
        safe = len(self._held[: len(self._held) - kept].rstrip())
        reasoning, self._held = self._held[:safe], self._held[safe:]
        return reasoning
