"""One model's chat template, rendered in a limited process."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from mantler.errors import ErrorCode, MantlerError, invalid
from mantler.messages import ChatPrompt, ToolChoiceMode
from runtime_server.limited.bounds import Bounds
from runtime_server.limited.process import LimitedProcess, LimitError
from runtime_server.models.errors import PullError
from runtime_server.models.rendered import RENDERED, UNREADABLE
from runtime_server.models.vocabulary import StoredTemplate

RENDER_BOUNDS = Bounds(
    timeout_s=3.0,
    memory_bytes=256 * 2**20,
    stack_bytes=8 * 2**20,
    timeout_s_per_mb=0.25,
    memory_per_byte=16,
)
MAX_WAITING_RENDERS = 256
"""Conversations that wait for one another, per model. Ordinary ones take less than a millisecond each."""

Result = TypeVar("Result")

_MODULE = "runtime_server.models.template_process"
_TOO_COSTLY = "the model's chat template takes more time or memory than is allowed to render them."


class Renderer:
    """Turns conversations into text, one after the other.

    Args:
        template: ``None`` for a model that takes no conversations.
    """

    def __init__(self, template: StoredTemplate | None) -> None:
        # Packing and unpacking a conversation of megabytes would hold up the event loop.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="conversations")
        self._process = None if template is None else _process(template)

    async def start(self) -> None:
        """Starts the process, so that the first request need not. Raises what :func:`check_template` raises."""
        if self._process is not None:
            await _start(self._process)

    async def render(self, prompt: ChatPrompt) -> str:
        """The conversation as the model's chat template writes it, ready for the assistant's answer.

        Raises:
            MantlerError: INVALID_PARAMETER for ``messages`` where the model has no template, or its template refuses
                them or takes too much for them; RUNTIME_UNAVAILABLE where too many others wait.
        """
        if self._process is None:
            raise invalid("messages", "this model has no chat template; send it plain text instead.")
        async with self._process.turn() as ask:
            # Not sooner: what waits is not kept twice.
            question = await self._in_thread(lambda: _question(prompt))
            try:
                answer = await ask(question)
            except LimitError as error:
                raise invalid("messages", _TOO_COSTLY) from error
            return await self._in_thread(lambda: _text(answer))

    async def close(self) -> None:
        """Ends the process. Requests that wait for it fail."""
        if self._process is not None:
            await self._process.close()
        self._thread.shutdown(wait=False)

    async def _in_thread(self, function: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)


def check_template(template: StoredTemplate) -> None:
    """Compiles ``template`` in a process of its own. Blocks; callers may have an event loop.

    Raises:
        PullError: it cannot be read, or takes too much for that.
    """
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, _check(template)).result()


async def _check(template: StoredTemplate) -> None:
    process = _process(template)
    try:
        await _start(process)
    finally:
        await process.close()


def _process(template: StoredTemplate) -> LimitedProcess:
    opening = json.dumps([template.source, template.special_tokens]).encode()
    return LimitedProcess(_MODULE, RENDER_BOUNDS, max_waiting=MAX_WAITING_RENDERS, opening=opening)


async def _start(process: LimitedProcess) -> None:
    try:
        answer = await process.start()
    except LimitError as error:
        raise PullError("The model's chat template takes more time or memory to read than is allowed.") from error
    if answer[:1] == UNREADABLE:
        raise PullError(answer[1:].decode())


def _question(prompt: ChatPrompt) -> bytes:
    tools = () if prompt.tool_choice is ToolChoiceMode.NONE else prompt.tools
    return pickle.dumps((prompt.messages, tools, dict(prompt.template_variables)))


def _text(answer: bytes) -> str:
    if answer[:1] == RENDERED:
        return answer[1:].decode("utf-8", "surrogatepass")
    param, message = json.loads(answer[1:])
    raise MantlerError(ErrorCode.INVALID_PARAMETER, message, param=param)
