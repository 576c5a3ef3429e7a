"""A module that answers questions in a process of its own, which is ended when it does not answer in time.

A process can be stopped in what a thread cannot: endless loops, endless memory, a stack that overflows. It sees neither
the environment nor the open files of its parent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict

from mantler.errors import ErrorCode, MantlerError, internal
from runtime_server.limited.bounds import Bounds
from runtime_server.limited.worker import EXHAUSTED_STATUS, FRAME_HEADER

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 60.0
"""For the interpreter and its imports, which wait for processors and disks like everybody else."""
END_TIMEOUT_S = 3.0
"""For a process that has closed its output."""
BUFFER_BYTES = 1_048_576
"""Of an answer that are taken from the pipe ahead of being read."""

_KEPT_VARIABLES = ("LD_LIBRARY_PATH", "PYTHONHOME", "TZ")

Ask = Callable[[bytes], Awaitable[bytes]]


class LimitError(Exception):
    """The process needed more time, memory or stack for a question than it may have."""


class LimitedProcess:
    """Keeps the process, which starts when it is needed first and again after a question that broke it.

    Lives on the event loop. Questions are asked one after the other.

    Args:
        module: is run with ``python -m`` and calls :func:`runtime_server.limited.worker.serve`.
        max_waiting: callers that wait for their turn.
        opening: a question that a new process answers before all others.
    """

    def __init__(self, module: str, bounds: Bounds, *, max_waiting: int, opening: bytes | None = None) -> None:
        self._module = module
        self._bounds = bounds
        self._max_waiting = max_waiting
        self._opening = opening
        self._process: Process | None = None
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._closed = False

    async def start(self) -> bytes:
        """Starts the process anew. Returns its answer to the opening question, and raises what asking raises."""
        async with self._turn:
            await self._end()
            return await self._start()

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[Ask]:
        """Waits for those who came before, and yields what asks one question.

        Asking raises :class:`LimitError`, or ``MantlerError`` INTERNAL_ERROR where the process fails by itself.
        Where the caller is cancelled, the process ends: its answer must not be taken for the next one's.

        Raises:
            MantlerError: RUNTIME_UNAVAILABLE where too many others wait, or the process was closed.
        """
        if self._closed:
            raise _unavailable("The model is being unloaded.")
        if self._waiting >= self._max_waiting:
            raise _unavailable("Too many requests wait to be prepared.")
        self._waiting += 1
        try:
            async with self._turn:
                yield self._ask
        finally:
            self._waiting -= 1

    async def close(self) -> None:
        """Ends the process. Whoever waits for it is refused."""
        self._closed = True
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
        async with self._turn:
            await self._end()

    async def _ask(self, question: bytes) -> bytes:
        process = self._process
        if process is None or process.returncode is not None:
            # One that was killed between two questions harms neither.
            await self._end()
            await self._start()
        return await self._exchange(question)

    async def _start(self) -> bytes:
        if self._closed:
            raise _unavailable("The model is being unloaded.")
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            self._module,
            json.dumps(asdict(self._bounds)),
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            cwd=os.sep,
            env=_environment(),
            limit=BUFFER_BYTES,
        )
        await self._answer(START_TIMEOUT_S, max_bytes=0)
        return b"" if self._opening is None else await self._exchange(self._opening)

    async def _exchange(self, question: bytes) -> bytes:
        size = len(question)
        assert self._process is not None and self._process.stdin is not None  # noqa: PT018, S101 - it was started
        self._process.stdin.writelines([FRAME_HEADER.pack(size), question])
        return await self._answer(self._bounds.timeout_for(size), max_bytes=self._bounds.memory_for(size))

    async def _answer(self, timeout_s: float, *, max_bytes: int) -> bytes:
        process = self._process
        assert process is not None and process.stdout is not None  # noqa: PT018, S101 - it was started
        answer = None
        try:
            async with asyncio.timeout(timeout_s):
                (size,) = FRAME_HEADER.unpack(await process.stdout.readexactly(FRAME_HEADER.size))
                if size <= max_bytes:
                    answer = await process.stdout.readexactly(size)
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            if answer is None:
                await self._end()
        if answer is not None:
            return answer
        if self._closed:
            raise _unavailable("The model is being unloaded.")
        status = process.returncode
        if status is None or status < 0 or status == EXHAUSTED_STATUS:
            raise LimitError
        logger.error("%s ended with exit status %d", self._module, status)
        raise internal()

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdout is not None and process.stdout.at_eof():
            # It is ending by itself, and how it does says why.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_TIMEOUT_S):
                    await process.wait()
        if process.returncode is None:
            process.kill()
        await process.communicate()


def _unavailable(message: str) -> MantlerError:
    return MantlerError(ErrorCode.RUNTIME_UNAVAILABLE, message, retry_after_s=1.0)


def _environment() -> dict[str, str]:
    """What Python needs to find the same modules; nothing else, which might be secret."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return {**kept, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)), "MALLOC_ARENA_MAX": "1"}
