"""Whether a constraint compiles in bounded time, memory and stack, found out in a process of its own.

The compiler bounds most of its work, not all: some schemas of a few dozen bytes keep it busy for ever, long chains of
references overflow its stack. Neither can be stopped within a process, so each new constraint is tried in another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
from asyncio.subprocess import PIPE, Process

from mantler.errors import ErrorCode, MantlerError, internal
from runtime_server.constraints.limits import COMPILE_TIMEOUT_S, MAX_WAITING_COMPILES

logger = logging.getLogger(__name__)

MAX_ANSWER_BYTES = 1_048_576
TOO_COSTLY = "it takes more time or memory than is allowed"


class Trial:
    """Keeps the process, which starts when it is needed first and again after a constraint that broke it."""

    def __init__(self) -> None:
        self._process: Process | None = None
        self._lock = asyncio.Lock()
        self._waiting = 0

    async def complaint(self, grammar: str) -> str:
        """What the compiler says against ``grammar``; empty where it takes it.

        Raises ``MantlerError`` RUNTIME_UNAVAILABLE where too many others wait.
        """
        if self._waiting >= MAX_WAITING_COMPILES:
            raise MantlerError(
                ErrorCode.RUNTIME_UNAVAILABLE, "Too many output constraints wait to be compiled.", retry_after_s=1.0
            )
        self._waiting += 1
        try:
            async with self._lock:
                return await self._ask(grammar)
        finally:
            self._waiting -= 1

    async def close(self) -> None:
        """Ends the process."""
        async with self._lock:
            await self._end()

    async def _ask(self, grammar: str) -> str:
        process = self._process
        if process is None:
            process = self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "runtime_server.constraints.trial_process",
                stdin=PIPE,
                stdout=PIPE,
                limit=MAX_ANSWER_BYTES,
            )
        assert process.stdin is not None and process.stdout is not None  # noqa: PT018, S101 - pipes were asked for
        answered = False
        try:
            process.stdin.write(json.dumps(grammar).encode() + b"\n")
            async with asyncio.timeout(COMPILE_TIMEOUT_S):
                line = await process.stdout.readline()
            answered = line.endswith(b"\n")
        except (TimeoutError, ConnectionError):
            pass
        finally:
            # Also where the caller has gone: an answer that nobody reads must not be taken for the next one's.
            if not answered:
                await self._end()
        if answered:
            return str(json.loads(line))
        if process.returncode is None or process.returncode < 0:
            return TOO_COSTLY
        logger.error("the process that tries constraints ended with exit status %d", process.returncode)
        raise internal()

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(TimeoutError):
            if process.stdout is not None and process.stdout.at_eof():
                # It is ending by itself, and how it does says why.
                async with asyncio.timeout(COMPILE_TIMEOUT_S):
                    await process.wait()
        if process.returncode is None:
            process.kill()
        await process.communicate()
