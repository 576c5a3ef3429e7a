"""A prompt as bytes, in the order in which templates write it: equal beginnings become equal beginnings."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import assert_never

from mantler.messages import ChatMessage, ChatPrompt, Prompt, TextPrompt, TokenPrompt


def prompt_bytes(prompt: Prompt) -> Iterator[bytes]:
    """The parts of ``prompt``, none of which could be a part of another kind."""
    match prompt:
        case TextPrompt(text):
            yield text.encode("utf-8", "surrogatepass")
        case TokenPrompt(token_ids):
            yield array("I", token_ids).tobytes()
        case ChatPrompt():
            for tool in prompt.tools:
                yield f"\0tool {tool.name}\0{tool.description}\0{tool.parameters}".encode("utf-8", "surrogatepass")
            for message in prompt.messages:
                yield from _turn(message)
        case _:
            assert_never(prompt)


def _turn(message: ChatMessage) -> Iterator[bytes]:
    yield f"\0{message.role.value}\0{message.name or ''}\0".encode("utf-8", "surrogatepass")
    yield (message.content or "").encode("utf-8", "surrogatepass")
    for call in message.tool_calls:
        yield f"\0{call.name}\0{call.arguments}".encode("utf-8", "surrogatepass")
