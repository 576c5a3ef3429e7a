"""The tokens of one choice as text: what a client sees of them, and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mantler.messages import FinishReason, ToolCallDelta
from runtime_server.chat.output import ChatOutput, Parts
from runtime_server.engine.text import Detokenizer, StopMatcher


@dataclass(frozen=True, slots=True)
class Piece:
    """What one token, or the end of the output, released."""

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    stop_string: str | None = None
    """That ended the output."""


class OutputText:
    """Tokens become characters, characters become reasoning, calls and content, and content ends at a stop string.

    Places in the output are counted in characters that the tokens made, whatever became of them.

    Args:
        token_bytes: of the model's tokenizer.
        stop_strings: not sent, and no content after them.
        min_tokens: the content of so many tokens can neither be a stop string nor begin one.
        chat: for models that reason, and where tools are offered.
    """

    def __init__(
        self,
        token_bytes: Sequence[bytes],
        stop_strings: Sequence[str] = (),
        *,
        min_tokens: int = 0,
        chat: ChatOutput | None = None,
    ) -> None:
        self._detokenizer = Detokenizer(token_bytes)
        self._chat = chat
        self._stops = StopMatcher(stop_strings)
        self._min_tokens = min_tokens
        self._tokens = 0
        self._withheld = 0
        """Characters of content that wait for a stop string to be decided, or that one has cut off."""
        self.length = 0
        """Characters that the tokens made so far."""

    @property
    def end_of_token(self) -> int:
        """Where the last token ends: it has a part of a character that is not whole yet."""
        return self.length + self._detokenizer.holds

    @property
    def settled(self) -> int:
        """How many characters have been given out, as whatever they are."""
        undecided = 0 if self._chat is None else self._chat.holds
        return self.length - undecided - self._withheld

    @property
    def ended(self) -> bool:
        """Whether nothing that follows belongs to the output."""
        return self._chat is not None and self._chat.ended

    @property
    def reasoning_tokens(self) -> int:
        """Tokens that were reasoning."""
        return 0 if self._chat is None else self._chat.reasoning_tokens

    def finish_reason(self, reason: FinishReason) -> FinishReason:
        """Why the output ended, given why the engine ended it."""
        return reason if self._chat is None else self._chat.finish_reason(reason)

    def feed(self, token_id: int) -> Piece:
        """Takes the next token. Nothing may follow a stop string."""
        self._tokens += 1
        characters = self._decoded(self._detokenizer.feed(token_id))
        parts = Parts(characters) if self._chat is None else self._chat.feed(characters)
        if self._tokens <= self._min_tokens:
            return Piece(parts.content, parts.reasoning, parts.tool_calls)
        return self._cut(parts)

    def flush(self) -> Piece:
        """What every stage held back, now that nothing follows."""
        characters = self._decoded(self._detokenizer.flush())
        piece = self._cut(Parts(characters) if self._chat is None else self._chat.flush(characters))
        if piece.stop_string is not None:
            return piece
        held = self._stops.flush()
        self._withheld -= len(held)
        return Piece(piece.content + held, piece.reasoning, piece.tool_calls)

    def _decoded(self, characters: str) -> str:
        self.length += len(characters)
        return characters

    def _cut(self, parts: Parts) -> Piece:
        released = self._stops.feed(parts.content)
        self._withheld += len(parts.content) - len(released.text)
        return Piece(released.text, parts.reasoning, parts.tool_calls, released.stopped_by)
