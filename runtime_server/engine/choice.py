"""One choice of an answer: the engine's tokens turned into the bodies of events."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from collections.abc import Sequence as Items

from mantler.errors import MantlerError
from mantler.messages import Delta, Finished, FinishReason, Started, TokenCandidate, TokenLogprob, Usage
from runtime_server.engine.held_tokens import HeldTokens
from runtime_server.engine.logprobs import Ranking
from runtime_server.engine.sequence import Sequence
from runtime_server.engine.text import Detokenizer, StopMatcher


class Choice:
    """Takes one sequence's tokens (a :class:`runtime_server.engine.engine.Sink`) and gives out its events' bodies.

    Args:
        sequence: of this choice.
        first: of the request's first choice, which is the one whose cached tokens its usage counts.
        wake: set whenever there is something to take.
        token_bytes: of the model's tokenizer.
        stop_strings: not sent, and nothing after them.
    """

    def __init__(
        self,
        sequence: Sequence,
        first: Sequence,
        wake: asyncio.Event,
        *,
        model: str,
        fingerprint: str,
        token_bytes: Items[bytes],
        stop_strings: Items[str],
    ) -> None:
        self.sequence = sequence
        self.finished = False
        """Whether the last body was given out."""
        self._first = first
        self._wake = wake
        self._model = model
        self._fingerprint = fingerprint
        self._token_bytes = token_bytes
        self._detokenizer = Detokenizer(token_bytes)
        self._stops = StopMatcher(stop_strings)
        self._held = HeldTokens() if sequence.logprobs is not None else None
        self._admitted = False
        self._started = False
        self._pending: list[tuple[int, Ranking | None]] = []
        self._finish: FinishReason | None = None
        self._error: MantlerError | None = None
        self._completion_tokens = 0
        self._decoded = 0
        """Characters that the tokens made, sent or not."""
        self._sent = 0

    def admitted(self) -> None:
        """See :class:`runtime_server.engine.engine.Sink`."""
        self._admitted = True
        self._wake.set()

    def token(self, token_id: int, finish: FinishReason | None, ranking: Ranking | None) -> None:
        """See :class:`runtime_server.engine.engine.Sink`."""
        self._pending.append((token_id, ranking))
        self._finish = finish
        self._wake.set()

    def failed(self, error: MantlerError) -> None:
        """See :class:`runtime_server.engine.engine.Sink`."""
        self._error = error
        self._wake.set()

    def take(self) -> Iterator[Started | Delta | Finished]:
        """What has come since the last time. Raises ``MantlerError`` where nothing more will."""
        if self._admitted and not self._started:
            self._started = True
            yield Started(self._model, self.sequence.prompt_tokens, self._first.cached_tokens, self._fingerprint)
        pending, self._pending = self._pending, []
        if pending:
            delta, finished = self._take(pending)
            if delta.text or delta.token_ids:
                yield delta
            if finished is not None:
                self.finished = True
                yield finished
                return
        if self._error is not None:
            raise self._error

    def _take(self, pending: list[tuple[int, Ranking | None]]) -> tuple[Delta, Finished | None]:
        """Turns tokens into a delta, and into the end where they hold it."""
        text: list[str] = []
        token_ids: list[int] = []
        for token_id, ranking in pending:
            self._completion_tokens += 1
            if token_id in self.sequence.end_ids:
                text.append(self._flush())
                return self._delta(text, token_ids, last=True), self._finished(
                    FinishReason.STOP, stop_token_id=token_id
                )
            token_ids.append(token_id)
            stopped_by = self._feed(token_id, ranking, text)
            if stopped_by is not None:
                return self._delta(text, token_ids, last=True), self._finished(
                    FinishReason.STOP, stop_string=stopped_by
                )
        if self._finish is None:
            return self._delta(text, token_ids, last=False), None
        text.append(self._flush())
        return self._delta(text, token_ids, last=True), self._finished(self._finish)

    def _feed(self, token_id: int, ranking: Ranking | None, text: list[str]) -> str | None:
        """Adds what ``token_id`` releases to ``text``; returns the stop string that it completes."""
        characters = self._detokenizer.feed(token_id)
        start, self._decoded = self._decoded, self._decoded + len(characters)
        if self._held is not None and ranking is not None:
            self._held.add(self._entry(token_id, ranking), start, self._decoded + self._detokenizer.holds)
        if self._completion_tokens <= self.sequence.min_tokens:
            # Text before min_tokens can neither be a stop string nor begin one.
            text.append(characters)
            return None
        released = self._stops.feed(characters)
        text.append(released.text)
        return released.stopped_by

    def _flush(self) -> str:
        """What both stages held back, now that nothing follows."""
        tail = self._stops.feed(self._detokenizer.flush())
        return tail.text if tail.stopped_by is not None else tail.text + self._stops.flush()

    def _delta(self, text: list[str], token_ids: list[int], *, last: bool) -> Delta:
        joined = "".join(text)
        if self._held is None:
            return Delta(joined, tuple(token_ids))
        self._sent += len(joined)
        entries = self._held.end(self._sent) if last else self._held.release(self._sent)
        return Delta(joined, tuple(entry.chosen.token_id for entry in entries), entries)

    def _entry(self, token_id: int, ranking: Ranking) -> TokenLogprob:
        others = zip(ranking.top_ids, ranking.top, strict=True)
        return TokenLogprob(
            self._candidate(token_id, ranking.chosen), tuple(self._candidate(other, value) for other, value in others)
        )

    def _candidate(self, token_id: int, logprob: float) -> TokenCandidate:
        # A model's output layer may be padded beyond its vocabulary.
        data = self._token_bytes[token_id] if token_id < len(self._token_bytes) else b""
        return TokenCandidate(token_id, data, logprob)

    def _finished(
        self, reason: FinishReason, *, stop_string: str | None = None, stop_token_id: int | None = None
    ) -> Finished:
        usage = Usage(self.sequence.prompt_tokens, self._completion_tokens, self._first.cached_tokens)
        return Finished(reason, usage, stop_string=stop_string, stop_token_id=stop_token_id)
