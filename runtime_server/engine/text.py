"""Token ids to text, as a stream: whole characters only, and nothing of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass


class Detokenizer:
    """Joins the bytes of tokens and gives out whole characters.

    Bytes of a character that is not whole yet are held back; :meth:`flush` turns what is left into U+FFFD.

    Args:
        token_bytes: the bytes of each token id; empty for control tokens.
    """

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_id: int) -> str:
        """The characters that ``token_id`` completes."""
        # A model's output layer may be padded beyond its vocabulary.
        data = self._token_bytes[token_id] if token_id < len(self._token_bytes) else b""
        return self._decoder.decode(data)

    @property
    def holds(self) -> bool:
        """Whether bytes are held back."""
        return bool(self._decoder.getstate()[0])

    def flush(self) -> str:
        """What was held back. The stream is over after it."""
        return self._decoder.decode(b"", final=True)


@dataclass(frozen=True, slots=True)
class Released:
    """Text that is safe to send, and the stop string that ended it, if one did."""

    text: str
    stopped_by: str | None = None


class StopMatcher:
    """Finds the first stop string in a stream of text, across the borders of its pieces.

    Text that may be the beginning of a stop string is held back. Of stop strings that end at the same character the
    longest counts, so that no part of any of them is sent. Each character costs a step of one automaton per stop
    string (Knuth, Morris, Pratt, "Fast pattern matching in strings", 1977).
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._automata = [_Automaton(stop) for stop in sorted(stops, key=len, reverse=True)]
        self._held = ""

    def feed(self, text: str) -> Released:
        """Takes the next piece and says what may be sent. Nothing may follow once a stop string was found."""
        if not self._automata:
            return Released(text)
        self._held += text
        start = len(self._held) - len(text)
        for position, character in enumerate(text, start=start + 1):
            found = [automaton.stop for automaton in self._automata if automaton.step(character)]
            if found:
                sent = self._held[: position - len(found[0])]
                self._held = ""
                return Released(sent, found[0])
        safe = len(self._held) - max(automaton.matched for automaton in self._automata)
        sent, self._held = self._held[:safe], self._held[safe:]
        return Released(sent)

    def flush(self) -> str:
        """What was held back. The stream is over after it."""
        held, self._held = self._held, ""
        return held


class _Automaton:
    """How much of one stop string the text ends with."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.matched = 0
        self._fallback = _borders(stop)

    def step(self, character: str) -> bool:
        while self.matched and self.stop[self.matched] != character:
            self.matched = self._fallback[self.matched - 1]
        self.matched += self.stop[self.matched] == character
        return self.matched == len(self.stop)


def _borders(pattern: str) -> list[int]:
    """For each prefix of ``pattern``, the length of its longest proper prefix that is also its suffix."""
    borders = [0] * len(pattern)
    length = 0
    for i in range(1, len(pattern)):
        while length and pattern[i] != pattern[length]:
            length = borders[length - 1]
        length += pattern[i] == pattern[length]
        borders[i] = length
    return borders
