"""The events of one request, put together: what each choice said, and what all of them cost. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from mantler.messages import Delta, Finished, FinishReason, TokenLogprob, Usage


@dataclass(slots=True)
class CollectedChoice:
    """One choice, as far as it has come."""

    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    reason: FinishReason | None = None
    """``None`` until it has finished."""

    @property
    def text(self) -> str:
        """All of its text."""
        return "".join(self.texts)

    def add(self, delta: Delta) -> None:
        """Takes the next piece."""
        self.texts.append(delta.text)
        self.logprobs.extend(delta.logprobs)


class UsageSum:
    """The usage of a request, out of that of its ``n`` choices, which come in any order."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._of_choices: dict[int, Usage] = {}

    def add(self, index: int, finished: Finished) -> None:
        """Takes the usage of a choice that has finished."""
        self._of_choices[index] = finished.usage

    def total(self) -> Usage:
        """The prompt once and all completions. Raises ``ValueError`` while a choice is not finished."""
        if sorted(self._of_choices) != list(range(self._n)):
            raise ValueError(f"of {self._n} choices, {sorted(self._of_choices)} have finished")
        first = self._of_choices[0]
        return Usage(
            prompt_tokens=first.prompt_tokens,
            completion_tokens=sum(usage.completion_tokens for usage in self._of_choices.values()),
            cached_prompt_tokens=first.cached_prompt_tokens,
        )
