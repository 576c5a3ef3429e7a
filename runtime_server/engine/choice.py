"""One choice of an answer: the engine's tokens turned into the bodies of events."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from collections.abc import Sequence as Items

from mantler.errors import MantlerError
from mantler.messages import Delta, Finished, FinishReason, Started, TokenCandidate, TokenLogprob, Usage, join_calls
from runtime_server.engine.held_tokens import HeldTokens
from runtime_server.engine.logprobs import Ranking
from runtime_server.engine.output_text import OutputText, Piece
from runtime_server.engine.sequence import Sequence


class Choice:
    """Takes one sequence's tokens (a :class:`runtime_server.engine.engine.Sink`) and gives out its events' bodies.

    Args:
        sequence: of this choice.
        first: of the request's first choice, which is the one whose cached tokens its usage counts.
        wake: set whenever there is something to take.
        token_bytes: of the model's tokenizer.
        output: what its tokens become; of this choice alone. The output that the sequence has already goes through it
            first, and comes as a delta without tokens.
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
        output: OutputText,
    ) -> None:
        self.sequence = sequence
        self.finished = False
        """Whether the last body was given out."""
        self._first = first
        self._wake = wake
        self._model = model
        self._fingerprint = fingerprint
        self._token_bytes = token_bytes
        self._output = output
        self._held = HeldTokens() if sequence.logprobs is not None else None
        self._admitted = False
        self._started = False
        self._pending: list[tuple[int, Ranking | None]] = []
        self._finish: FinishReason | None = None
        self._error: MantlerError | None = None
        self._completion_tokens = 0
        self._replayed: list[Piece] = []
        self._ending: Finished | None = None
        """The end, where the output that was there already holds it."""
        self._replay()

    @property
    def ended(self) -> bool:
        """Whether nothing needs to be generated."""
        return self._ending is not None

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
            yield Started(self._model, self.sequence.prompt_tokens, self._cached_tokens, self._fingerprint)
            if self._replayed:
                yield self._delta(self._replayed, [], last=False)
            if self._ending is not None:
                self.finished = True
                yield self._ending
                return
        pending, self._pending = self._pending, []
        if pending:
            delta, finished = self._take(pending)
            if delta.text or delta.token_ids or delta.tool_calls or delta.reasoning:
                yield delta
            if finished is not None:
                self.finished = True
                yield finished
                return
        if self._error is not None:
            raise self._error

    def _replay(self) -> None:
        sequence = self.sequence
        for token_id in sequence.output_ids:
            self._completion_tokens += 1
            self._replayed.append(self._output.feed(token_id))
            stop_string = self._replayed[-1].stop_string
            if stop_string is not None or self._output.ended:
                self._ending = self._finished(FinishReason.STOP, stop_string=stop_string)
                return
        satisfied = sequence.matcher is not None and sequence.matcher.complete
        if satisfied or self._completion_tokens >= sequence.max_tokens:
            self._replayed.append(self._output.flush())
            self._ending = self._finished(FinishReason.STOP if satisfied else FinishReason.LENGTH)

    def _take(self, pending: list[tuple[int, Ranking | None]]) -> tuple[Delta, Finished | None]:
        """Turns tokens into a delta, and into the end where they hold it."""
        pieces: list[Piece] = []
        token_ids: list[int] = []
        for token_id, ranking in pending:
            self._completion_tokens += 1
            if token_id in self.sequence.end_ids:
                pieces.append(self._output.flush())
                finished = self._finished(FinishReason.STOP, stop_token_id=token_id)
                return self._delta(pieces, token_ids, last=True), finished
            token_ids.append(token_id)
            pieces.append(self._feed(token_id, ranking))
            stop_string = pieces[-1].stop_string
            if stop_string is not None or self._output.ended:
                if stop_string is None:
                    pieces.append(self._output.flush())
                finished = self._finished(FinishReason.STOP, stop_string=stop_string)
                return self._delta(pieces, token_ids, last=True), finished
        if self._finish is None:
            return self._delta(pieces, token_ids, last=False), None
        pieces.append(self._output.flush())
        return self._delta(pieces, token_ids, last=True), self._finished(self._finish)

    def _feed(self, token_id: int, ranking: Ranking | None) -> Piece:
        start = self._output.length
        piece = self._output.feed(token_id)
        if self._held is not None and ranking is not None:
            self._held.add(self._entry(token_id, ranking), start, self._output.end_of_token)
        return piece

    def _delta(self, pieces: list[Piece], token_ids: list[int], *, last: bool) -> Delta:
        entries: tuple[TokenLogprob, ...] = ()
        if self._held is not None:
            settled = self._output.settled
            entries = self._held.end(settled) if last else self._held.release(settled)
            token_ids = [entry.chosen.token_id for entry in entries]
        return Delta(
            "".join([piece.content for piece in pieces]),
            tuple(token_ids),
            entries,
            join_calls(part for piece in pieces for part in piece.tool_calls),
            "".join([piece.reasoning for piece in pieces]),
        )

    def _entry(self, token_id: int, ranking: Ranking) -> TokenLogprob:
        others = zip(ranking.top_ids, ranking.top, strict=True)
        return TokenLogprob(
            self._candidate(token_id, ranking.chosen), tuple(self._candidate(other, value) for other, value in others)
        )

    def _candidate(self, token_id: int, logprob: float) -> TokenCandidate:
        # A model's output layer may be padded beyond its vocabulary.
        data = self._token_bytes[token_id] if token_id < len(self._token_bytes) else b""
        return TokenCandidate(token_id, data, logprob)

    @property
    def _cached_tokens(self) -> int:
        # Output that was delivered may be in the cache as well.
        return min(self._first.cached_tokens, self.sequence.prompt_tokens)

    def _finished(
        self, reason: FinishReason, *, stop_string: str | None = None, stop_token_id: int | None = None
    ) -> Finished:
        usage = Usage(
            self.sequence.prompt_tokens,
            self._completion_tokens,
            self._cached_tokens,
            self._output.reasoning_tokens,
        )
        return Finished(self._output.finish_reason(reason), usage, stop_string=stop_string, stop_token_id=stop_token_id)
