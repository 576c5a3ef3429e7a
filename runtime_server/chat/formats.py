"""How the families of models write tool calls."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CallFormat:
    """One family's way: ``opening before {"name": …, arguments_key: {…}} between {…} closing``, white space between."""

    opening: str
    arguments_key: str
    before: str = ""
    between: str = ""
    """Separates the calls that share an opening; empty where each has its own."""
    closing: str = ""
    bare: bool = False
    """Whether an output may begin with a call that has no opening."""


HERMES = CallFormat(opening="<tool_call>", arguments_key="arguments", closing="</tool_call>")
LLAMA = CallFormat(opening="<|python_tag|>", arguments_key="parameters", between=";", bare=True)
MISTRAL = CallFormat(opening="[TOOL_CALLS]", arguments_key="arguments", before="[", between=",", closing="]")

FORMATS: dict[str, CallFormat] = {
    "[TOOL_CALLS]": MISTRAL,
    "<tool_call>": HERMES,
    "<|python_tag|>": LLAMA,
    '"parameters":': LLAMA,
}
"""The format of a model by what its chat template says; the first that is found counts."""


def knows_tools(template: str) -> bool:
    """Whether a chat template writes the tools itself."""
    return "tools" in template and any(mark in template for mark in FORMATS)


def call_format(template: str) -> CallFormat:
    """The format of the model with this chat template. A template that knows no tools gets ours, which is Hermes'."""
    if not knows_tools(template):
        return HERMES
    return next(made for mark, made in FORMATS.items() if mark in template)
