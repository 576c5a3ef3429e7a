"""One request's answer: the engine's tokens turned into events with text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from collections.abc import Sequence as Items

from mantler.errors import MantlerError
from mantler.messages import Delta, Event, Finished, FinishReason, Started, Usage
from runtime_server.engine.engine import Engine
from runtime_server.engine.sequence import Sequence
from runtime_server.engine.text import Detokenizer, StopMatcher


class Generation:
    """Submits a sequence and yields its events. Lives on the event loop.

    Tokens wait here until the consumer takes them and leave as one delta, so a slow consumer makes deltas longer
    rather than queues deeper; their number is bounded by the sequence's ``max_tokens``.

    Args:
        token_bytes: of the model's tokenizer.
        stop_strings: not sent, and nothing after them.
    """

    def __init__(
        self,
        engine: Engine,
        sequence: Sequence,
        *,
        model: str,
        fingerprint: str,
        token_bytes: Items[bytes],
        stop_strings: Items[str] = (),
    ) -> None:
        self._engine = engine
        self._sequence = sequence
        self._model = model
        self._fingerprint = fingerprint
        self._detokenizer = Detokenizer(token_bytes)
        self._stops = StopMatcher(stop_strings)
        self._wake = asyncio.Event()
        self._admitted = False
        self._pending: list[int] = []
        self._finish: FinishReason | None = None
        self._error: MantlerError | None = None
        self._completion_tokens = 0

    async def events(self) -> AsyncGenerator[Event, None]:
        """Started, Deltas, Finished. Closing the iterator frees what the sequence holds.

        Raises ``MantlerError`` where the queue is full or the engine fails.
        """
        seq = 0
        self._engine.submit(self._sequence, self)
        try:
            async for body in self._bodies():
                yield Event(seq=seq, index=self._sequence.choice, body=body)
                seq += 1
        finally:
            self._engine.cancel(self._sequence)

    def admitted(self) -> None:
        """See :class:`runtime_server.engine.engine.Sink`."""
        self._admitted = True
        self._wake.set()

    def token(self, token_id: int, finish: FinishReason | None) -> None:
        """See :class:`runtime_server.engine.engine.Sink`."""
        self._pending.append(token_id)
        self._finish = finish
        self._wake.set()

    def failed(self, error: MantlerError) -> None:
        """See :class:`runtime_server.engine.engine.Sink`."""
        self._error = error
        self._wake.set()

    async def _bodies(self) -> AsyncGenerator[Started | Delta | Finished, None]:
        await self._wake.wait()
        if not self._admitted:
            raise self._error or RuntimeError("a sequence that was not admitted has tokens")
        sequence = self._sequence
        yield Started(self._model, sequence.prompt_tokens, sequence.cached_tokens, self._fingerprint)
        while True:
            self._wake.clear()
            pending, self._pending = self._pending, []
            if pending:
                delta, finished = self._take(pending)
                if delta.text or delta.token_ids:
                    yield delta
                if finished is not None:
                    yield finished
                    return
            if self._error is not None:
                raise self._error
            await self._wake.wait()

    def _take(self, pending: list[int]) -> tuple[Delta, Finished | None]:
        """Turns tokens into a delta, and into the end where they hold it."""
        text: list[str] = []
        for position, token_id in enumerate(pending):
            self._completion_tokens += 1
            if token_id in self._sequence.end_ids:
                text.append(self._flush())
                return Delta("".join(text), tuple(pending[:-1])), self._finished(
                    FinishReason.STOP, stop_token_id=token_id
                )
            stopped_by = self._feed(token_id, text)
            if stopped_by is not None:
                return Delta("".join(text), tuple(pending[: position + 1])), self._finished(
                    FinishReason.STOP, stop_string=stopped_by
                )
        if self._finish is not None:
            text.append(self._flush())
        delta = Delta("".join(text), tuple(pending))
        return delta, None if self._finish is None else self._finished(self._finish)

    def _feed(self, token_id: int, text: list[str]) -> str | None:
        """Adds what ``token_id`` releases to ``text``; returns the stop string that it completes."""
        characters = self._detokenizer.feed(token_id)
        if self._completion_tokens <= self._sequence.min_tokens:
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

    def _finished(
        self, reason: FinishReason, *, stop_string: str | None = None, stop_token_id: int | None = None
    ) -> Finished:
        usage = Usage(self._sequence.prompt_tokens, self._completion_tokens, self._sequence.cached_tokens)
        return Finished(reason, usage, stop_string=stop_string, stop_token_id=stop_token_id)
