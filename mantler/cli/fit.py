"""``mantler fit``: what a model would take of a device's memory, without loading it."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

import click

from mantler.cli.commands import Command
from mantler.cli.errors import EXIT_FAILED, BadUsage, CliError
from mantler.cli.options import json_option, option, settings_options
from mantler.cli.settings import read
from mantler.cli.terminal import note, print_json
from mantler.cli.values import Number, OneOf
from mantler.config import RuntimeSettings

if TYPE_CHECKING:
    from runtime_server.models.fit import Fit
    from runtime_server.models.footprint import Footprint
    from runtime_server.models.known import KnownModel

_QUANTIZATIONS = ("int8", "fp32", "bf16", "int4")


@click.command(cls=Command)
@click.argument("model")
@option(
    "--context",
    env="MANTLER_FIT_CONTEXT",
    help="Prompt and output of one stream together, in tokens.",
    shown_default="the model's",
    type=Number(int, 1, 2**24),
)
@option(
    "--streams",
    env="MANTLER_FIT_STREAMS",
    help="Requests of that length that run at the same time.",
    shown_default="1",
    type=Number(int, 1, 1024),
    default=1,
)
@option(
    "--quantization",
    env="MANTLER_FIT_QUANTIZATION",
    help="int8 and fp32 for the CPU, bf16 and int4 for CUDA.",
    shown_default="as it is stored, or else int8 or bf16",
    type=OneOf(_QUANTIZATIONS),
)
@option(
    "--memory-gb",
    env="MANTLER_FIT_MEMORY_GB",
    help="Fit into so much free memory, on a device that need not be here.",
    shown_default="what is free",
    type=Number(float, 0, 100_000, open_low=True),
)
@json_option
@settings_options(RuntimeSettings, only=("device", "home"))
def fit(
    model: str,
    context: int | None,
    streams: int,
    quantization: str | None,
    memory_gb: float | None,
    json: bool,
    flags: dict[str, object],
) -> None:
    """Say what a model takes of memory, and whether it fits.

    Nothing is fetched or loaded. MODEL is a stored model, one that Mantler knows, a GGUF file or a folder, or
    hf:ORG/REPO of one that is stored or known. It is the arithmetic with which a runtime refuses what does not fit.

    Exits with 1 if it does not fit.

    \b
    Examples:
      mantler fit smollm2:135m --streams 32
      mantler fit qwen3:0.6b --context 4096 --json | jq .fits
      mantler fit qwen3:0.6b --device cuda --memory-gb 24 --streams 64 --quantization int4
    """
    settings = read(RuntimeSettings, flags)
    from runtime_server.models.fit import Fit
    from runtime_server.models.footprint import QUANTIZATIONS, usable_bytes
    from runtime_server.models.known import known
    from runtime_server.models.store import ModelStore

    found = known(model, ModelStore(settings.models_dir))
    kind, free = _memory(settings.device, quantization or found.quantization, memory_gb)
    chosen = _quantization(kind, quantization, found.quantization, QUANTIZATIONS[kind])
    limit = found.config.context_length
    if context is not None and context > limit:
        raise BadUsage(f"--context: must be at most {limit}, the context of {found.name}, got {context}")
    sizes = {name: _footprint(kind, found, name, settings, streams) for name in QUANTIZATIONS[kind]}
    result = Fit(sizes.pop(chosen), streams, context or limit, usable_bytes(kind, free))
    out = () if result.fits else tuple(result.ways_out(sizes))
    if json:
        print_json(_as_json(found.name, kind, chosen, result, free, limit, out))
    else:
        _show(found.name, kind, chosen, result, free, out)
    if not result.fits:
        sys.exit(EXIT_FAILED)


def _memory(wish: str, quantization: str | None, memory_gb: float | None) -> tuple[str, int]:
    """The kind of device, and its free memory in bytes."""
    for_cuda = wish.startswith("cuda") or (wish == "auto" and quantization in ("bf16", "int4"))
    if memory_gb is not None:
        return "cuda" if for_cuda else "cpu", int(memory_gb * 1e9)
    if not for_cuda:
        from mantler.memory import available_bytes

        return "cpu", available_bytes()
    from runtime_server.backends.cuda_state import cuda_state
    from runtime_server.backends.devices import DeviceError, card_for

    try:
        return "cuda", card_for(wish, cuda_state()).free_bytes
    except DeviceError as error:
        hint = f"{error.hint}; --memory-gb says how much memory to fit into where there is no card"
        raise CliError(str(error), hint=hint) from error


def _quantization(kind: str, asked: str | None, stored: str | None, runs: tuple[str, ...]) -> str:
    if asked is not None and asked not in runs:
        raise BadUsage(f"--quantization: must be {' or '.join(runs)} on the device {kind}, got {asked!r}")
    return asked or (stored if stored in runs else runs[0])


def _footprint(kind: str, model: KnownModel, quantization: str, settings: RuntimeSettings, streams: int) -> Footprint:
    from runtime_server.engine.scheduler import IDLE_CHUNKS
    from runtime_server.models.footprint import footprint

    return footprint(
        kind,
        model.config,
        quantization,
        max_batch=streams,
        step_tokens=IDLE_CHUNKS * settings.prefill_chunk,
        stored_bytes=model.weight_bytes if quantization == model.quantization else None,
    )


def _as_json(
    name: str, kind: str, quantization: str, result: Fit, free: int, limit: int, ways_out: tuple[str, ...]
) -> dict[str, object]:
    size = result.footprint
    return {
        "model": name,
        "device": kind,
        "quantization": quantization,
        "context": result.context,
        "streams": result.streams,
        "weight_bytes": size.weight_bytes,
        "workspace_bytes": size.workspace_bytes,
        "kv_bytes_per_token": size.kv_bytes_per_token,
        "block_tokens": size.block_tokens,
        "cache_bytes": result.cache_bytes,
        "total_bytes": result.total_bytes,
        "free_bytes": free,
        "usable_bytes": result.usable_bytes,
        "fits": result.fits,
        "max_streams": size.most_streams(result.context, result.usable_bytes),
        "max_context": min(limit, size.longest_context(result.streams, result.usable_bytes)),
        "would_fit": list(ways_out),
    }


def _show(name: str, kind: str, quantization: str, result: Fit, free: int, ways_out: tuple[str, ...]) -> None:
    from runtime_server.models.footprint import megabytes

    size, tokens = result.footprint, f"{result.streams} × {result.context} tokens"
    rows = {
        "model": f"{name}, {quantization}, on {kind}",
        "weights": megabytes(size.weight_bytes),
        "workspace": megabytes(size.workspace_bytes),
        "per token": f"{size.kv_bytes_per_token:,} bytes of keys and values, in blocks of {size.block_tokens} tokens",
        "cache": f"{megabytes(result.cache_bytes)} for {tokens}",
        "in all": megabytes(result.total_bytes),
        "free": f"{megabytes(free)}, of which {megabytes(result.usable_bytes)} may be taken",
        "fits": "yes" if result.fits else "no",
    }
    for what, value in rows.items():
        click.echo(f"{what:9}  {value}")
    for way in ways_out:
        click.echo(f"{'':9}  would fit: {way}")
    if result.fits:
        cache_mb = math.ceil(result.cache_bytes / 1e6)
        wishes = f"--max-batch {result.streams} --max-request-tokens {result.context} --kv-memory-mb {cache_mb}"
        note(f"`mantler runtime --model {name} {wishes}` serves it so, once it is stored.")
