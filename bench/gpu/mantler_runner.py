"""Measures one stored model on Mantler's engine. A process of its own, so that its memory is free afterwards."""

from __future__ import annotations

import argparse
import asyncio
import sys
from dataclasses import asdict
from pathlib import Path

from bench.gpu.decode import decode
from bench.gpu.engine import loaded
from bench.gpu.load import Load, add_options
from bench.gpu.mixed import mixed
from bench.gpu.said import or_absent, quiet_output, say, say_figures
from mantler.config import RuntimeSettings
from runtime_server.backends.devices import DeviceError
from runtime_server.backends.providers import installed
from runtime_server.engine.kv_plan import KvPlanError
from runtime_server.engine.scheduler import GROWTH_BLOCKS
from runtime_server.models.errors import PullError

LARGEST_BLOCK = 256
"""Tokens in a block of the cache, on any device."""


async def measure(model_id: str, settings: RuntimeSettings, load: Load) -> None:
    """Says the figures of everything that ``load`` asks for."""
    async with loaded(model_id, settings) as model:
        say("traffic", **asdict(model.traffic))
        for batch in load.batches if "decode" in load.kinds else ():
            with or_absent(f"{batch} streams"):
                say_figures(await decode(model, load, batch))
        if "mixed" in load.kinds:
            with or_absent("mixed load"):
                say_figures(await mixed(model, load))


def main() -> None:
    parser = argparse.ArgumentParser(prog="mantler_runner", description=__doc__)
    add_options(parser)
    parser.add_argument("--home", type=Path, required=True, help="of the store that has the model")
    parser.add_argument("--model", required=True, help="its id")
    parser.add_argument("--prefill-chunk", type=int, help="see `mantler runtime --help`")
    given = parser.parse_args()
    load: Load = given.load
    settings = RuntimeSettings(
        home=given.home,
        device=given.device,
        max_batch=load.most_streams,
        max_request_tokens=load.longest + GROWTH_BLOCKS * LARGEST_BLOCK,
        **({"prefill_chunk": given.prefill_chunk} if given.prefill_chunk else {}),
    )
    with quiet_output():
        version, providers = installed()
        say("versions", onnxruntime=f"{version} ({', '.join(providers)})")
        try:
            asyncio.run(measure(given.model, settings, load))
        except (DeviceError, KvPlanError) as error:
            sys.exit(f"{error}; {error.hint}")
        except PullError as error:
            sys.exit(f"{error.message} {error.hint or ''}")


if __name__ == "__main__":
    main()
