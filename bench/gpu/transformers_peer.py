"""The peer: Hugging Face transformers with the same weights in bf16 and the same prompts. Needs torch.

Measured are `generate`, whose batch is static, and its continuous batching. Each begins with a run that does not
count. The process's standard output is for the figures only.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.gpu.continuous import running
from bench.gpu.figures import DecodeFigures, UnmeasuredError, decode_figures
from bench.gpu.load import WARM_TOKENS, Load, add_options, prompts
from bench.gpu.said import or_absent, quiet_output, say, say_figures
from bench.stream import Stream

STATIC = "transformers generate"
CONTINUOUS = "transformers continuous batching"
ATTENTION = ("flash-attn", "kernels")
"""Packages that continuous batching is faster with, and takes where they are there."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="transformers_peer", description=__doc__)
    add_options(parser)
    parser.add_argument("--folder", type=Path, required=True, help="Hugging Face folder of the model")
    given = parser.parse_args()
    with quiet_output():
        try:
            model = loaded(given.folder, given.device)
        except ImportError as error:
            sys.exit(f"the peer needs torch and transformers: {error}")
        load: Load = given.load
        for batch in load.batches if "decode" in load.kinds else ():
            with or_absent(f"{batch} streams", STATIC), enough_memory():
                say_figures(static(model, load, batch), STATIC)
        with or_absent("everything", CONTINUOUS), enough_memory(), running(model, load) as batching:
            for batch in load.batches if "decode" in load.kinds else ():
                with or_absent(f"{batch} streams", CONTINUOUS), enough_memory():
                    say_figures(batching.decode(batch), CONTINUOUS)
            if "mixed" in load.kinds:
                with or_absent("mixed load", CONTINUOUS), enough_memory():
                    say_figures(batching.mixed(), CONTINUOUS)


def loaded(folder: Path, device: str) -> Any:
    """The model, whose answers end with their length only."""
    import torch
    import transformers

    cuda = torch.version.cuda or "none"
    kernels = {name: _version(name) for name in ATTENTION}
    say("versions", torch=torch.__version__, torch_cuda=cuda, transformers=transformers.__version__, **kernels)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, local_files_only=True)
    model.generation_config.update(do_sample=False, eos_token_id=None, pad_token_id=0)
    return model.to(device).eval()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def static(model: Any, load: Load, batch: int) -> DecodeFigures:
    """The figures of ``batch`` streams in `generate`."""
    import torch

    begun = prompts(model.config.vocab_size, batch, load.context, f"decode {batch}")
    inputs = torch.tensor(begun, device=model.device)

    def generate(new_tokens: int) -> list[float]:
        times: list[float] = []

        def note(tokens: Any, scores: Any, **_: object) -> Any:
            """Waits for the step's tokens, as `generate` is about to do itself."""
            tokens[0, -1].item()
            times.append(time.perf_counter())
            return torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)

        model.generate(
            inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=new_tokens, stopping_criteria=[note]
        )
        return times

    started = time.perf_counter()
    generate(WARM_TOKENS)
    times = generate(load.new_tokens)
    return decode_figures([Stream(started, pieces=times) for _ in begun], load.context)


@contextmanager
def enough_memory() -> Iterator[None]:
    """Raises :class:`UnmeasuredError` where the block gets too little, and gives back what it got."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UnmeasuredError("the device's memory does not suffice") from error
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
