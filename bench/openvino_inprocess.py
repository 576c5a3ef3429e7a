"""The benchmark's workloads on OpenVINO GenAI without HTTP: no server, no detokenising, times taken at the engine.

The benchmark starts it in OpenVINO's environment. It takes a JSON object with a workload and a seed per line of
standard input, and prints the streams as a line of JSON. A step keeps Python's lock, so requests join between steps.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections.abc import Callable

from bench.openvino_engine import Engine, EngineSettings
from bench.options import add_openvino_options
from bench.record import run
from bench.stream import Request, Stream, checked
from bench.workloads import Plan, warm_up


class Driver:
    """Steps the engine in the event loop for as long as anything is to be computed."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._numbers = itertools.count()
        self._open: dict[int, tuple[Stream, Callable[[], None], asyncio.Event]] = {}

    async def ask(self, request: Request, on_first: Callable[[], None]) -> Stream:
        """An :data:`~bench.stream.Ask`."""
        stream, done, number = Stream(time.perf_counter()), asyncio.Event(), next(self._numbers)
        messages = [{"role": "system", "content": request.system}, {"role": "user", "content": request.user}]
        self._open[number] = stream, on_first, done
        stream.prompt_tokens = self._engine.add(number, messages, request.max_tokens)
        await done.wait()
        return checked(stream, request)

    async def drive(self) -> None:
        """Until it is cancelled."""
        while True:
            for output in self._engine.step() if self._engine.busy else ():
                stream, on_first, done = self._open[output.request]
                if output.token_ids:
                    if not stream.pieces:
                        on_first()
                    stream.pieces.append(output.at)
                    stream.tokens += len(output.token_ids)
                if output.finished:
                    stream.ended = output.at
                    del self._open[output.request]
                    done.set()
            await asyncio.sleep(0 if self._engine.busy else 0.001)


async def measure(engine: Engine, plan: Plan, name: str, seed: str) -> list[dict[str, object]]:
    """Runs the workload called ``name``."""
    workload = next(workload for workload in plan.workloads() if workload.name == name)
    driver = Driver(engine)
    driving = asyncio.create_task(driver.drive())
    try:
        await warm_up(driver.ask, f"{seed} {name}")
        return await run(workload, driver.ask, seed, time.perf_counter)
    finally:
        driving.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_openvino_options(parser)
    parser.add_argument("--plan", default="{}", help="JSON of the plan whose workloads are run")
    given = parser.parse_args()
    plan = Plan(**json.loads(given.plan))
    engine = Engine(EngineSettings(given.gguf, given.threads, given.slots, given.prefix_cache))
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(asyncio.run(measure(engine, plan, asked["workload"], asked["seed"]))), flush=True)


if __name__ == "__main__":
    main()
