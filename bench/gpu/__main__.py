"""Measures how fast a device decodes: Mantler's engine without a server, beside what the memory allows and a peer.

Everything measured is a process of its own, one after the other, so that one model at a time is on the device. The
device's bandwidth comes from copies in the same run; that and the peer need torch, which Mantler does not. Without
--model, the weights are random ones of a real model's shape. They and Mantler's conversions are kept below --home for
later runs. A table goes to standard output, progress to standard error.

Examples:
  make bench-gpu
  make bench-gpu ARGS='--shape llama-3.1-8b --parts prepare'
  make bench-gpu ARGS='--shape llama-3.1-8b --formats int4 --parts decode,mixed --json int4.json'
  python -m bench.gpu --device cpu --shape tiny --batches 1,4 --context 64
"""

from __future__ import annotations

import argparse
import datetime
import re
import shlex
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from bench.gpu.benchmark import PARTS, Benchmark, Plan
from bench.gpu.card import card
from bench.gpu.load import KINDS, Load
from bench.gpu.models import random_folder
from bench.gpu.results import Results
from bench.gpu.shapes import SHAPES
from bench.gpu.table import page
from bench.machine import machine
from bench.options import among, levels, positive
from bench.weights import CACHE
from runtime_server.models.errors import PullError
from runtime_server.models.footprint import QUANTIZATIONS
from runtime_server.models.hf_source import open_folder

TIMEOUT_S = 300


def main() -> None:
    parser = options()
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(stderr=True, highlight=False)
    given.home.mkdir(parents=True, exist_ok=True)
    formats = QUANTIZATIONS["cpu" if given.device == "cpu" else "cuda"]
    if unknown := set(given.formats or ()) - set(formats):
        parser.error(f"--formats: {', '.join(sorted(unknown))}: must be among {', '.join(formats)} on {given.device}")
    try:
        folder = given.model or random_folder(given.shape, given.home, console)
        context_length = open_folder(folder).config.context_length
    except PullError as error:
        sys.exit(f"{error.message} {error.hint or ''}")
    load = loaded(given)
    if load.longest > context_length:
        parser.error(f"--context: these loads make {load.longest} tokens of a stream, the model takes {context_length}")
    plan = Plan(
        folder=folder,
        formats=given.formats or formats,
        parts=frozenset(given.parts),
        load=load,
        device=given.device,
        home=given.home,
        torch_python=given.torch_python,
        prefill_chunk=given.prefill_chunk,
        timeout_s=given.timeout,
    )
    run(plan, given.json, console)


def run(plan: Plan, json_file: Path | None, console: Console) -> None:
    """Measures, prints the table and writes the file. Exits with 1 where a part of Mantler's own failed."""
    results = Results(
        date=datetime.date.today().isoformat(),
        command=shlex.join(["python", "-m", "bench.gpu", *sys.argv[1:]]),
        model=plan.folder.name,
        machine=machine() | {"device": plan.device} | card(plan.device),
        load=asdict(plan.load),
    )
    benchmark = Benchmark(plan, results, console)
    interrupted = False
    try:
        benchmark.run()
    except KeyboardInterrupt:
        interrupted = True
        console.print("[yellow]interrupted: what was measured is kept[/]")
    print(page(results))
    if json_file is not None:
        results.save(json_file)
    sys.exit(130 if interrupted else int(benchmark.failed))


def loaded(given: argparse.Namespace) -> Load:
    """What the flags ask for. Where nothing but the peer is measured, it is asked for everything."""
    kinds = tuple(kind for kind in KINDS if kind in given.parts)
    return Load(
        kinds=kinds or (KINDS if "peer" in given.parts else ()),
        batches=given.batches,
        context=given.context,
        new_tokens=given.new_tokens,
        streams=given.streams,
        long_tokens=given.long_tokens,
        long_prompts=given.long_prompts,
    )


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    load = Load()
    batches = ",".join(map(str, load.batches))
    shapes = tuple(SHAPES)
    parser.add_argument("--device", type=device, default="cuda:0", help="cpu or cuda:N (default: cuda:0)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--shape", choices=shapes, default="smollm2-135m", help="of random weights (default: %(default)s)"
    )
    source.add_argument("--model", type=model_folder, metavar="FOLDER", help="a real model: its Hugging Face folder")
    parser.add_argument(
        "--formats", type=lambda text: tuple(text.split(",")), help="of weights (default: all of the device)"
    )
    parser.add_argument(
        "--parts",
        type=among(PARTS),
        default=(*KINDS, "peer"),
        help=f"some of {','.join(PARTS)} (default: all; prepare makes and converts the model only)",
    )
    parser.add_argument(
        "--batches", type=levels, default=load.batches, help=f"streams that decode (default: {batches})"
    )
    for name, text in {
        "context": "tokens of a decoding stream's prompt",
        "new-tokens": "that each stream decodes",
        "streams": "of the mixed load",
        "long-tokens": "of a prompt that arrives in the mixed load",
        "long-prompts": "that arrive, one after the other",
    }.items():
        default = getattr(load, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=positive, default=default, help=f"{text} (default: {default})")
    parser.add_argument("--prefill-chunk", type=positive, help="of Mantler: see `mantler runtime --help`")
    parser.add_argument("--home", type=Path, default=CACHE / "gpu", help="keeps the models (default: .cache/gpu)")
    parser.add_argument(
        "--torch-python",
        type=Path,
        default=Path(sys.executable),
        help="a Python with torch, and transformers for the peer (default: this one)",
    )
    parser.add_argument(
        "--timeout", type=positive, default=TIMEOUT_S, help=f"seconds of a process (default: {TIMEOUT_S})"
    )
    parser.add_argument("--json", type=new_file, metavar="FILE", help="takes all figures")
    return parser


def device(text: str) -> str:
    """A device by its full name."""
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"must be cpu, cuda or cuda:N, not {text!r}")
    return "cuda:0" if text == "cuda" else text


def model_folder(text: str) -> Path:
    """A folder that is there."""
    path = Path(text).expanduser().absolute()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"must be a folder with config.json, not {text!r}")
    return path


def new_file(text: str) -> Path:
    """A file in a folder that is there: that it is not would be known too late."""
    path = Path(text).expanduser().absolute()
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"the folder of {text!r} is not there")
    return path


if __name__ == "__main__":
    main()
