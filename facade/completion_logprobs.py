"""Log probabilities in the shape that completions have: parallel arrays. Pure."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Any

from facade.logprobs import token_text
from mantler.messages import TokenLogprob


class CompletionLogprobs:
    """The log probabilities of one choice, piece by piece.

    Args:
        top: likeliest tokens that were asked for at each position.
    """

    def __init__(self, top: int) -> None:
        self._top = top
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def next_object(self, entries: Iterable[TokenLogprob]) -> dict[str, Any]:
        """``logprobs`` of the next piece.

        ``text_offset`` counts characters of the choice's text from its beginning; a token that ends a character which
        an earlier one began has the offset of that character. ``top_logprobs`` has the chosen token as well, so there
        may be one more than was asked for; with 0 it is null.
        """
        entries = tuple(entries)
        return {
            "tokens": [token_text(entry.chosen) for entry in entries],
            "token_logprobs": [entry.chosen.logprob for entry in entries],
            "top_logprobs": [_likeliest(entry) for entry in entries] if self._top else None,
            "text_offset": [self._advance(entry.chosen.token_bytes) for entry in entries],
        }

    def _advance(self, token_bytes: bytes) -> int:
        here = self._offset
        self._offset += len(self._decoder.decode(token_bytes))
        return here


def _likeliest(entry: TokenLogprob) -> dict[str, float]:
    """By text: of two tokens that are written alike the likelier one counts."""
    found: dict[str, float] = {}
    for candidate in (*entry.top, entry.chosen):
        text = token_text(candidate)
        found[text] = max(candidate.logprob, found.get(text, candidate.logprob))
    return found
