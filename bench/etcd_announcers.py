"""Many machines in one process that announce themselves in etcd as runtimes do, for ``bench.etcd_mesh``.

It takes orders on its standard input, a line each: a number lets so many machines drain or come back, one after the
other. For each it prints the machine's id and the time of the change, on the clock of ``time.monotonic``.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import cast

from mantler.etcd import Etcd
from mantler.mesh.machine import LoadReport, MachineId, ModelLoad
from mantler.messages import Deployment, MachineInfo, ModelInfo, ModelState
from runtime_server.machine import ThisMachine
from runtime_server.mesh.announce import Announcing

PREFIX = "/bench"
CHANGE_EVERY_S = 0.1
STREAMS = 12
"""On a busy machine, on average."""
STREAM_S = 5.0
"""How long one takes, on average."""
STREAM_TOKENS = 768
MODEL = "smollm2:135m"


class SimulatedMachine:
    """What an announcement asks of ``ThisMachine``, with streams that begin and end at random."""

    def __init__(self, number: int, *, busy: bool) -> None:
        self.id = MachineId(f"machine-{number:04}")
        deployment = Deployment(4096, 16, 0, 64, 0, 2**30, "cpu")
        model = ModelInfo(MODEL, ModelState.READY, "llama", "int8", 134_515_008, 8192, 10**8, 1, deployment)
        self._info = MachineInfo(self.id, time.time_ns(), 1, "", (model,))
        self._busy = busy
        self._draw = random.Random(number)
        self._streams = STREAMS if busy else 0
        self._looked_s = time.monotonic()
        self._sequence = 0
        self._news = asyncio.Event()

    async def info(self) -> MachineInfo:
        """As it was, unless it was :meth:`change`\\ d."""
        return self._info

    def load(self) -> LoadReport:
        """As many streams as began and ended since it was asked last."""
        now_s = time.monotonic()
        passed = (now_s - self._looked_s) / STREAM_S
        self._looked_s = now_s
        if self._busy:
            self._streams -= sum(self._draw.random() < passed for _ in range(self._streams))
            self._streams += sum(self._draw.random() < passed for _ in range(STREAMS))
        self._sequence += 1
        load = ModelLoad(MODEL, self._streams, 0, self._streams * STREAM_TOKENS)
        return LoadReport(self.id, self._info.epoch, self._sequence, (load,))

    def change(self) -> None:
        """Begins to drain, or ends it."""
        before = self._info
        self._info = MachineInfo(
            self.id, before.epoch, before.revision + 1, "", before.models, draining=not before.draining
        )
        self._news.set()

    async def news(self) -> None:
        """Returns after a change."""
        await self._news.wait()
        self._news.clear()


async def announce(url: str, count: int, *, busy: bool) -> None:
    """Announces ``count`` machines until the standard input ends."""
    machines = [SimulatedMachine(number, busy=busy) for number in range(count)]
    draw = random.Random(0)
    async with AsyncExitStack() as stack:
        for number, machine in enumerate(machines):
            announcing = Announcing(Etcd([url]), PREFIX, cast(ThisMachine, machine), f"127.0.0.1:{10_000 + number}")
            stack.push_async_callback(announcing.close)
            announcing.start()
        while order := await asyncio.to_thread(sys.stdin.readline):
            for _ in range(int(order)):
                machine = draw.choice(machines)
                changed_s = time.monotonic()
                machine.change()
                sys.stdout.write(f"{machine.id} {changed_s}\n")
                await asyncio.sleep(CHANGE_EVERY_S)
            sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Returns when the standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of etcd")
    parser.add_argument("machines", type=int)
    parser.add_argument("--busy", action="store_true")
    options = parser.parse_args(argv)
    asyncio.run(announce(options.url, options.machines, busy=options.busy))
    return 0


if __name__ == "__main__":
    sys.exit(main())
