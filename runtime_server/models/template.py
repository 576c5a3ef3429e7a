"""Chat templates: a conversation becomes the text that the model was trained on.

Templates are written for transformers, which renders them with jinja2. They are rendered here with jinja2 alone, set
up the same way, because importing transformers takes 0.8 to 1.7 s of a start and jinja2 0.06 s; a test compares the
two on real conversations.

A template comes with a model, so it is code from a stranger. It runs in jinja2's immutable sandbox, and what it writes
is bounded. What it may take of time and memory is bounded by the process that it runs in
(:mod:`runtime_server.models.template_process`); only there, and in tests, are templates compiled or rendered.

A message's text is pasted as it is: a special token that a user spells in it, such as ``<|im_end|>``, becomes that
token when the rendered text is encoded. Models' own tools behave so, and prompts here are the same as theirs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from mantler.errors import MantlerError, invalid
from mantler.messages import ChatMessage, Role, Tool
from runtime_server.chat.default_format import openai_call, openai_tool, with_tools, without_calls
from runtime_server.chat.formats import knows_tools
from runtime_server.models.errors import PullError

MAX_GROWTH = 4
"""A rendered conversation has at most this many characters per character of its messages, and …"""
MAX_TEMPLATE_CHARS = 1_000_000
"""… this many besides; no value inside the template may be repeated to more."""
MAX_SOURCE_CHARS = 262_144
"""Of a template's own text. Long ones have 20,000."""
MAX_REFUSAL_CHARS = 1000
"""Of what a template says against a conversation."""


class _Refusal(jinja2.TemplateError):
    """What ``raise_exception`` of a template raises. Its text is made for users."""


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Also keeps a template from building huge values by ``*`` and ``**``."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        size = 0
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            size = left.bit_length() * abs(right)
        elif operator == "*":
            for value, count in ((left, right), (right, left)):
                if isinstance(value, (str, list, tuple)) and isinstance(count, int):
                    size = len(value) * count
        if size > MAX_TEMPLATE_CHARS:
            raise jinja2.exceptions.SecurityError("a value grows too large")
        return super().call_binop(context, operator, left, right)


class _GenerationBlock(jinja2.ext.Extension):
    """``{% generation %}`` marks the assistant's text for training; here it only passes through."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: object) -> None:
    raise _Refusal(str(message)[:MAX_REFUSAL_CHARS])


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _environment() -> _Sandbox:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class ChatTemplate:
    """A compiled template. Safe to use from several threads.

    Args:
        source: the template's text.
        special_tokens: ``bos_token``, ``eos_token`` … by name.

    Raises:
        PullError: the text is not a template, or too long for one.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        if len(source) > MAX_SOURCE_CHARS:
            raise PullError(f"The model's chat template has more than {MAX_SOURCE_CHARS} characters.")
        try:
            self._template = _environment().from_string(source)
        except MemoryError:
            raise
        except Exception as error:  # a stranger's code, parts of which run already when it is compiled
            raise PullError("The model's chat template cannot be read.") from error
        self._special_tokens = dict(special_tokens)
        self._knows_developer = "developer" in source
        self._knows_tools = knows_tools(source)

    def render(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[Tool] = (),
        variables: Mapping[str, object] = MappingProxyType({}),
    ) -> str:
        """The conversation as text, up to where the assistant's next answer begins.

        A template that knows no tools gets them, and calls and results in the history, in Hermes' format.

        Args:
            tools: that are offered.
            variables: further ones for the template, such as ``enable_thinking``. Ours come first.

        Raises:
            MantlerError: INVALID_PARAMETER for ``messages`` where the template refuses the conversation.
        """
        if not self._knows_tools:
            messages = with_tools(without_calls(messages), tools)
        turns = [self._turn(i, message) for i, message in enumerate(messages)]
        offered = [openai_tool(i, tool) for i, tool in enumerate(tools)] if self._knows_tools else []
        budget = MAX_TEMPLATE_CHARS + MAX_GROWTH * (len(str(turns)) + len(str(offered)))
        ours = {
            "messages": turns,
            "tools": offered or None,
            "documents": None,
            "add_generation_prompt": True,
            **self._special_tokens,
        }
        pieces: list[str] = []
        try:
            for piece in self._template.generate({**variables, **ours}):
                budget -= len(piece)
                if budget < 0:
                    raise _Refusal("the rendered conversation is too long.")
                pieces.append(piece)
        except _Refusal as error:
            raise invalid("messages", f"the model's chat template refuses them: {error.message}") from error
        except MemoryError:
            raise
        except Exception as error:  # a stranger's code may raise anything
            raise _not_renderable() from error
        return "".join(pieces)

    def _turn(self, position: int, message: ChatMessage) -> dict[str, Any]:
        role = message.role
        if role is Role.DEVELOPER and not self._knows_developer:
            # OpenAI's newer word for the same role; most templates know only the older one.
            role = Role.SYSTEM
        turn: dict[str, Any] = {"role": role.value, "content": message.content or ""}
        if message.name is not None:
            turn["name"] = message.name
        if message.tool_calls:
            turn["tool_calls"] = [openai_call(position, call) for call in message.tool_calls]
        if message.tool_call_id is not None:
            turn["tool_call_id"] = message.tool_call_id
        if message.reasoning is not None:
            turn["reasoning_content"] = message.reasoning
        return turn


def _not_renderable() -> MantlerError:
    return invalid("messages", "the model's chat template cannot render them; check the roles and their order.")
