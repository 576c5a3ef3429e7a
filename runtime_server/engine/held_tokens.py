"""Tokens with log probabilities that wait until their text is sent. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from mantler.messages import TokenLogprob


@dataclass(frozen=True, slots=True)
class _Held:
    entry: TokenLogprob
    start: int
    end: int


class HeldTokens:
    """Keeps tokens in their order. Places are counted in characters of the output, sent or not."""

    def __init__(self) -> None:
        self._held: deque[_Held] = deque()

    def add(self, entry: TokenLogprob, start: int, end: int) -> None:
        """A token whose text lies from ``start`` to ``end``; a character that it has a part of belongs to it."""
        self._held.append(_Held(entry, start, end))

    def release(self, sent: int) -> tuple[TokenLogprob, ...]:
        """The tokens whose text is among the first ``sent`` characters."""
        released = []
        while self._held and self._held[0].end <= sent:
            released.append(self._held.popleft().entry)
        return tuple(released)

    def end(self, sent: int) -> tuple[TokenLogprob, ...]:
        """The last tokens, now that nothing follows the first ``sent`` characters: those that have one of these."""
        whole = self.release(sent)
        return whole + tuple(held.entry for held in self._held if held.start < sent)
