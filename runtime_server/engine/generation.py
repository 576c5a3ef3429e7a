"""One request's answer: the events of its choices in one stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from collections.abc import Sequence as Items

from mantler.messages import Event
from runtime_server.engine.choice import Choice
from runtime_server.engine.engine import Engine
from runtime_server.engine.output_text import OutputText
from runtime_server.engine.sequence import Sequence


class Generation:
    """Submits a request's sequences and yields their events. Lives on the event loop.

    Tokens wait here until the consumer takes them and leave as one delta per choice, so a slow consumer makes deltas
    longer rather than queues deeper; their number is bounded by the sequences' ``max_tokens``.

    Args:
        sequences: one per choice, with the same prompt.
        token_bytes: of the model's tokenizer.
        output: makes what the tokens of a choice become.
    """

    def __init__(
        self,
        engine: Engine,
        sequences: Items[Sequence],
        *,
        model: str,
        fingerprint: str,
        token_bytes: Items[bytes],
        output: Callable[[Sequence], OutputText],
    ) -> None:
        self._engine = engine
        self._wake = asyncio.Event()
        self._choices = [
            Choice(
                sequence,
                sequences[0],
                self._wake,
                model=model,
                fingerprint=fingerprint,
                token_bytes=token_bytes,
                output=output(sequence),
            )
            for sequence in sequences
        ]

    async def events(self) -> AsyncGenerator[Event, None]:
        """For each choice Started, Deltas, Finished. Closing the iterator frees what the sequences hold.

        Raises ``MantlerError`` where the queue is full or the engine fails; one choice that fails ends them all.
        """
        seq = 0
        for choice in self._choices:
            if choice.ended:
                choice.admitted()
        self._engine.submit([(choice.sequence, choice) for choice in self._choices if not choice.ended])
        try:
            unfinished = self._choices
            while unfinished:
                await self._wake.wait()
                self._wake.clear()
                for choice in unfinished:
                    for body in choice.take():
                        yield Event(seq=seq, index=choice.sequence.choice, body=body)
                        seq += 1
                    if choice.finished:
                        # A stop string ends it here only; the engine would go on while other choices do.
                        self._engine.cancel(choice.sequence)
                unfinished = [choice for choice in unfinished if not choice.finished]
        finally:
            for choice in self._choices:
                self._engine.cancel(choice.sequence)
