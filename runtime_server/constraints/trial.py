"""Whether a constraint compiles in bounded time, memory and stack, found out in a process of its own.

The compiler bounds most of its work, not all: some schemas of a few dozen bytes keep it busy for ever, long chains of
references overflow its stack. Neither can be stopped within a process, so each new constraint is tried in another one.
"""

from __future__ import annotations

from runtime_server.constraints.limits import COMPILE_BOUNDS, MAX_WAITING_COMPILES
from runtime_server.limited.process import LimitedProcess, LimitError

TOO_COSTLY = "it takes more time or memory than is allowed"


class Trial:
    """Tries constraints, one after the other."""

    def __init__(self) -> None:
        self._process = LimitedProcess(
            "runtime_server.constraints.trial_process", COMPILE_BOUNDS, max_waiting=MAX_WAITING_COMPILES
        )

    async def complaint(self, grammar: str) -> str:
        """What the compiler says against ``grammar``; empty where it takes it.

        Raises ``MantlerError`` RUNTIME_UNAVAILABLE where too many others wait.
        """
        async with self._process.turn() as ask:
            try:
                return (await ask(grammar.encode("utf-8", "surrogatepass"))).decode()
            except LimitError:
                return TOO_COSTLY

    async def close(self) -> None:
        """Ends the process."""
        await self._process.close()
