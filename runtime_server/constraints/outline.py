"""What an answer to a conversation must match: the client's constraint, calls in its place, reasoning before both."""

from __future__ import annotations

from dataclasses import dataclass

from mantler.messages import ChatPrompt, Constraint, NamedTool, ToolChoiceMode, constraint_param
from runtime_server.chat.dialect import Reasoning
from runtime_server.chat.formats import CallFormat
from runtime_server.constraints.calls import forced_calls, strict_calls


@dataclass(frozen=True, slots=True)
class Outline:
    """The parts of an answer. Reasoning is free text; then comes the answer or, where both are there, either."""

    reasoning: Reasoning
    answer: Constraint | None = None
    calls: str = ""
    """Lark grammar of what may stand in the answer's place; empty for nothing."""

    @property
    def param(self) -> str:
        """The request's field that errors name."""
        return "tools" if self.answer is None else constraint_param(self.answer)


def outline(
    prompt: ChatPrompt, constraint: Constraint | None, form: CallFormat, reasoning: Reasoning
) -> Outline | None:
    """What an answer to ``prompt`` must match; ``None`` where it is free.

    A constraint is for the content, of which there is none beside calls that must be made.

    Args:
        form: how the model writes calls.
        reasoning: what the answer begins with.

    Raises:
        MantlerError: INVALID_PARAMETER naming a tool whose schema cannot be kept.
    """
    tools, choice = prompt.tools, prompt.tool_choice
    if choice is ToolChoiceMode.NONE or not tools:
        return None if constraint is None else Outline(reasoning, constraint)
    several = prompt.parallel_tool_calls
    if isinstance(choice, NamedTool):
        return Outline(reasoning, calls=forced_calls(form, tools, only=choice.name))
    if choice is ToolChoiceMode.REQUIRED:
        return Outline(reasoning, calls=forced_calls(form, tools, several=several))
    if constraint is not None:
        return Outline(reasoning, constraint, forced_calls(form, tools, several=several))
    if any(tool.strict for tool in tools):
        return Outline(reasoning, calls=strict_calls(form, tools, several=several))
    return None
