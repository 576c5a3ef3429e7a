"""The events of one request, put together: what each choice said, and what all of them cost. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from mantler.messages import Delta, Finished, FinishReason, TokenLogprob, ToolCall, ToolCallDelta, Usage


@dataclass(slots=True)
class CollectedChoice:
    """One choice, as far as it has come."""

    texts: list[str] = field(default_factory=list)
    reasonings: list[str] = field(default_factory=list)
    calls: list[ToolCallDelta] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    reason: FinishReason | None = None
    """``None`` until it has finished."""

    @property
    def text(self) -> str:
        """All of its text."""
        return "".join(self.texts)

    @property
    def reasoning(self) -> str:
        """All of its reasoning."""
        return "".join(self.reasonings)

    @property
    def tool_calls(self) -> list[ToolCall]:
        """Its calls in their order."""
        parts: dict[int, list[ToolCallDelta]] = {}
        for part in self.calls:
            parts.setdefault(part.index, []).append(part)
        return [
            ToolCall(first.id or "", first.name or "", "".join([first.arguments, *(part.arguments for part in rest)]))
            for first, *rest in parts.values()
        ]

    def add(self, delta: Delta) -> None:
        """Takes the next piece."""
        self.texts.append(delta.text)
        self.reasonings.append(delta.reasoning)
        self.calls.extend(delta.tool_calls)
        self.logprobs.extend(delta.logprobs)


class UsageSum:
    """The usage of a request, out of that of its choices, which come in any order.

    Args:
        n: choices of a prompt.
        prompts: the choices of the first one come first.
    """

    def __init__(self, n: int, prompts: int = 1) -> None:
        self._n = n
        self._choices = n * prompts
        self._of_choices: dict[int, Usage] = {}

    def add(self, index: int, finished: Finished) -> None:
        """Takes the usage of a choice that has finished."""
        self._of_choices[index] = finished.usage

    def total(self) -> Usage:
        """Each prompt once and all completions. Raises ``ValueError`` while a choice is not finished."""
        if sorted(self._of_choices) != list(range(self._choices)):
            raise ValueError(f"of {self._choices} choices, {sorted(self._of_choices)} have finished")
        of_prompts = [self._of_choices[first] for first in range(0, self._choices, self._n)]
        return Usage(
            prompt_tokens=sum(usage.prompt_tokens for usage in of_prompts),
            completion_tokens=sum(usage.completion_tokens for usage in self._of_choices.values()),
            cached_prompt_tokens=sum(usage.cached_prompt_tokens for usage in of_prompts),
            reasoning_tokens=sum(usage.reasoning_tokens for usage in self._of_choices.values()),
        )
