"""What has come of an answer, so that another machine can go on with it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace

from mantler.errors import ErrorCode, MantlerError, internal
from mantler.messages import Delta, Event, Finished, GenerateRequest, ResumePoint, Started, ToolCallDelta

_log = logging.getLogger("mantler.mesh")


@dataclass(slots=True)
class _Choice:
    """What the client has of one choice, and what of it the machine that goes on will repeat."""

    started: bool = False
    finished: bool = False
    token_ids: list[int] = field(default_factory=list)
    text: int = 0
    """Characters."""
    reasoning: int = 0
    arguments: list[int] = field(default_factory=list)
    """Characters of each call's."""
    repeated_text: int = 0
    repeated_reasoning: int = 0
    repeated_calls: int = 0
    repeated_arguments: list[int] = field(default_factory=list)

    def expect_repeats(self) -> None:
        self.repeated_text, self.repeated_reasoning = self.text, self.reasoning
        self.repeated_calls, self.repeated_arguments = len(self.arguments), list(self.arguments)

    def news(self, delta: Delta) -> Delta:
        """``delta`` without what is repeated in it."""
        known_text = min(self.repeated_text, len(delta.text))
        known_reasoning = min(self.repeated_reasoning, len(delta.reasoning))
        self.repeated_text -= known_text
        self.repeated_reasoning -= known_reasoning
        return replace(
            delta,
            text=delta.text[known_text:],
            reasoning=delta.reasoning[known_reasoning:],
            tool_calls=tuple(new for part in delta.tool_calls if (new := self._new_part(part)) is not None),
        )

    def _new_part(self, part: ToolCallDelta) -> ToolCallDelta | None:
        if part.index >= self.repeated_calls:
            return part
        known = min(self.repeated_arguments[part.index], len(part.arguments))
        self.repeated_arguments[part.index] -= known
        arguments = part.arguments[known:]
        # The beginning of a call is known with the call.
        return ToolCallDelta(part.index, arguments) if arguments else None

    def count(self, delta: Delta, max_tokens: int | None) -> None:
        """Raises INTERNAL_ERROR for what no machine may say."""
        self.token_ids.extend(delta.token_ids)
        if max_tokens is not None and len(self.token_ids) > max_tokens:
            raise _nonsense(f"{len(self.token_ids)} tokens where {max_tokens} were asked for at most")
        self.text += len(delta.text)
        self.reasoning += len(delta.reasoning)
        for part in delta.tool_calls:
            if part.id is not None:
                self.arguments.append(0)
            if not 0 <= part.index < len(self.arguments):
                raise _nonsense(f"tool call {part.index}, which has not begun")
            self.arguments[part.index] += len(part.arguments)


class Continuation:
    """One request on its way over one machine after the other. Its client sees one stream.

    Args:
        request: with a seed, unless it is greedy. It may go on with an answer itself: what its client has already is
            repeated to it, as it would be by a machine.
    """

    def __init__(self, request: GenerateRequest) -> None:
        self._request = request
        point = request.resume or ResumePoint(((),) * request.n)
        self._choices = [
            _Choice(finished=index in point.finished, token_ids=list(token_ids))
            for index, token_ids in enumerate(point.delivered)
        ]
        self._resumed = False
        self._seq = 0
        self.fingerprint: str | None = None
        """Of the model that began the answer."""

    @property
    def begun(self) -> bool:
        """Whether the client has got anything."""
        return self._seq > 0

    @property
    def over(self) -> bool:
        """Whether every choice has finished."""
        return all(choice.finished for choice in self._choices)

    @property
    def tokens(self) -> int:
        """That were delivered, over all choices."""
        return sum(len(choice.token_ids) for choice in self._choices)

    def next_request(self) -> GenerateRequest:
        """What the next machine is asked for. What it repeats of the answer is left out from now on."""
        if not self.begun:
            return self._request
        self._resumed = True
        for choice in self._choices:
            choice.expect_repeats()
        delivered = tuple(tuple(choice.token_ids) for choice in self._choices)
        finished = frozenset(i for i, choice in enumerate(self._choices) if choice.finished)
        return replace(self._request, resume=ResumePoint(delivered, finished))

    def check(self, started: Started) -> None:
        """Raises RUNTIME_UNAVAILABLE where a machine that begins would go on with another answer."""
        if self.fingerprint not in (None, started.fingerprint):
            raise MantlerError(
                ErrorCode.RUNTIME_UNAVAILABLE,
                "No machine that is left serves the model as it was when the answer began.",
                retry_after_s=1.0,
            )

    def take(self, event: Event) -> Event | None:
        """An event of the machine as the client gets it; ``None`` where it has all of it.

        Raises INTERNAL_ERROR where it does not fit the request. The machine is at fault then.
        """
        if event.index >= len(self._choices):
            raise _nonsense(f"choice {event.index} of {len(self._choices)}")
        choice, body = self._choices[event.index], event.body
        if isinstance(body, Delta):
            if self._resumed:
                body = choice.news(body)
                if body == _NOTHING:
                    return None
            choice.count(body, self._request.stop.max_tokens)
        elif isinstance(body, Started):
            if choice.started:
                return None
            choice.started = True
            self.fingerprint = body.fingerprint
        elif isinstance(body, Finished):
            most = self._request.stop.max_tokens
            if most is not None and body.usage.completion_tokens > most:
                raise _nonsense(f"a usage of {body.usage.completion_tokens} tokens where {most} were asked for at most")
            choice.finished = True
        seq = self._seq
        self._seq += 1
        # Until a machine is lost, nothing changes on the way.
        return event if seq == event.seq and body is event.body else Event(seq, event.index, body)


def _nonsense(what: str) -> MantlerError:
    _log.error("a generation stream speaks of %s", what)
    return internal()


_NOTHING = Delta("")
