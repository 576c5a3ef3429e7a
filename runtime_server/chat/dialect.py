"""How one model writes reasoning and calls, as far as its chat template says."""

from __future__ import annotations

from enum import Enum, auto

from mantler.messages import ChatPrompt, ToolChoiceMode
from runtime_server.chat.formats import call_format
from runtime_server.chat.output import ChatOutput
from runtime_server.chat.reasoning import CLOSING, OPENING, ReasoningSplitter
from runtime_server.chat.tool_calls import ToolCallParser, call_ids


class Reasoning(Enum):
    """Whether an output begins with reasoning."""

    NONE = auto()
    POSSIBLE = auto()
    OPENED = auto()
    """The prompt ends with its opening tag."""


class Dialect:
    """What a chat template tells of the model's outputs.

    Args:
        template: ``None`` for a model without one, which takes no conversations.
    """

    def __init__(self, template: str | None) -> None:
        self.calls = call_format(template or "")
        self._reasons = template is not None and OPENING in template

    @property
    def tags(self) -> frozenset[str]:
        """What stands around reasoning and calls. In many vocabularies each is a token of its own."""
        tags = {self.calls.opening, self.calls.closing} | ({OPENING, CLOSING} if self._reasons else set())
        return frozenset(tag for tag in tags if len(tag) > 1)

    def reasoning(self, prompt_end: str) -> Reasoning:
        """What follows a rendered prompt that ends with ``prompt_end``: its last few tokens will do."""
        if not self._reasons or CLOSING in prompt_end:
            return Reasoning.NONE
        return Reasoning.OPENED if prompt_end.rstrip().endswith(OPENING) else Reasoning.POSSIBLE

    def output(self, prompt: ChatPrompt, reasoning: Reasoning, identity: bytes) -> ChatOutput | None:
        """Reads one answer to ``prompt``; ``None`` where there is nothing but content.

        Args:
            identity: of this answer, for the ids of its calls.
        """
        offers = bool(prompt.tools) and prompt.tool_choice is not ToolChoiceMode.NONE
        if reasoning is Reasoning.NONE and not offers:
            return None
        return ChatOutput(
            None if reasoning is Reasoning.NONE else ReasoningSplitter(opened=reasoning is Reasoning.OPENED),
            self._parser(prompt, identity) if offers else None,
            prompt.tool_choice,
        )

    def _parser(self, prompt: ChatPrompt, identity: bytes) -> ToolCallParser:
        names = [tool.name for tool in prompt.tools]
        return ToolCallParser(self.calls, names, parallel=prompt.parallel_tool_calls, ids=call_ids(identity))
