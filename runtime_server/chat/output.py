"""What a chat model writes, split into content, reasoning and tool calls."""

from __future__ import annotations

from dataclasses import dataclass

from mantler.messages import FinishReason, NamedTool, ToolCallDelta, ToolChoice, ToolChoiceMode
from runtime_server.chat.reasoning import ReasoningSplitter
from runtime_server.chat.tool_calls import ToolCallParser


@dataclass(frozen=True, slots=True)
class Parts:
    """What one piece of text, or the end of it, released."""

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()


class ChatOutput:
    """The stage between text and events. Requests without tools and reasoning have none.

    Args:
        reasoning: for models that reason.
        tool_calls: where tools may be called.
        choice: whether they must be.
    """

    def __init__(
        self,
        reasoning: ReasoningSplitter | None,
        tool_calls: ToolCallParser | None,
        choice: ToolChoice = ToolChoiceMode.AUTO,
    ) -> None:
        self._reasoning = reasoning
        self._tool_calls = tool_calls
        self._choice = choice
        self.reasoning_tokens = 0
        """Pieces that began inside the reasoning, which are tokens where each token is fed alone."""

    @property
    def holds(self) -> int:
        """Characters that wait for what follows to be known."""
        reasoning = 0 if self._reasoning is None else self._reasoning.holds
        return reasoning + (0 if self._tool_calls is None else self._tool_calls.holds)

    @property
    def ended(self) -> bool:
        """Whether nothing that follows belongs to the output."""
        return self._tool_calls is not None and self._tool_calls.ended

    def feed(self, text: str) -> Parts:
        """Takes the text of one token, which may be empty."""
        if self._reasoning is None:
            return self._parts("", text)
        self.reasoning_tokens += self._reasoning.inside
        return self._parts(*self._reasoning.feed(text))

    def flush(self, text: str = "") -> Parts:
        """What was held back, and ``text`` that no token is fed for. The stream is over after it."""
        parts = self._flush_reasoning(text)
        if self._tool_calls is None:
            return parts
        content, deltas = self._tool_calls.flush()
        return Parts(parts.content + self._content(content), parts.reasoning, parts.tool_calls + deltas)

    def finish_reason(self, reason: FinishReason) -> FinishReason:
        """Why the output ended, given why the engine did: calls that the model chose to make are a reason."""
        made = self._tool_calls is not None and self._tool_calls.calls > 0
        chosen = made and not isinstance(self._choice, NamedTool)
        return FinishReason.TOOL_CALLS if chosen and reason is FinishReason.STOP else reason

    def _flush_reasoning(self, text: str) -> Parts:
        if self._reasoning is None:
            return self._parts("", text)
        reasoning, answer = self._reasoning.feed(text)
        last_reasoning, last_answer = self._reasoning.flush()
        return self._parts(reasoning + last_reasoning, answer + last_answer)

    def _parts(self, reasoning: str, text: str) -> Parts:
        if self._tool_calls is None:
            return Parts(text, reasoning)
        content, deltas = self._tool_calls.feed(text)
        return Parts(self._content(content), reasoning, deltas)

    def _content(self, text: str) -> str:
        """Where calls must be made there is no content: it is the beginning of a call that was cut short."""
        forced = isinstance(self._choice, NamedTool) or self._choice is ToolChoiceMode.REQUIRED
        return "" if forced else text
