"""``mantler models``: what is in the store, or on a running runtime."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from mantler.cli.commands import Group
from mantler.cli.errors import CliError
from mantler.cli.expiry import show_time
from mantler.cli.options import GRPC_FIELDS, json_option, option, settings_options
from mantler.cli.settings import read
from mantler.cli.terminal import human_bytes, note, print_json, print_table
from mantler.config import ClientSettings, GrpcSettings

if TYPE_CHECKING:
    from mantler.messages import ModelInfo
    from runtime_server.models.manifest import Manifest


@click.group(cls=Group, invoke_without_command=True, meant={"list": "", "ls": "", "rm": "remove", "delete": "remove"})
@option("--remote", env="MANTLER_MODELS_REMOTE", help="Ask the runtime instead of the store.", is_flag=True)
@json_option
@settings_options(ClientSettings, only=("runtime", *GRPC_FIELDS, "home"))
@click.pass_context
def models(context: click.Context, remote: bool, json: bool, flags: dict[str, object]) -> None:
    """List or remove stored models.

    With --remote it lists the models of a running runtime instead.

    \b
    Examples:
      mantler models
      mantler models --json | jq -r '.[].id'
      mantler models --remote --runtime 192.168.1.20:50051
      mantler models remove smollm2:135m
    """
    if context.invoked_subcommand is not None:
        return
    settings = read(ClientSettings, flags)
    if remote:
        _show_remote(settings, json)
        return
    from runtime_server.models.store import ModelStore

    found = ModelStore(settings.models_dir).list()
    if json:
        print_json([_as_json(manifest) for manifest in found])
    elif found:
        headers = ("id", "architecture", "parameters", "quantization", "context length", "size", "made (UTC)", "source")
        print_table(headers, [_row(manifest) for manifest in found])
    else:
        note("No models. `mantler pull smollm2:135m` fetches the default one.")


@models.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@settings_options(ClientSettings, only=("home",))
def remove(ids: tuple[str, ...], flags: dict[str, object]) -> None:
    """Delete models from the store. A runtime that has one loaded keeps it until it ends.

    \b
    Examples:
      mantler models remove smollm2:135m
    """
    settings = read(ClientSettings, flags)
    from runtime_server.models.store import ModelStore

    store = ModelStore(settings.models_dir)
    for model_id in ids:
        store.remove(model_id)
        note(f"{model_id} is removed.")


def _show_remote(settings: ClientSettings, json: bool) -> None:
    infos = asyncio.run(ask(settings.runtime, settings))
    if json:
        print_json([_info_as_json(info) for info in infos])
    elif infos:
        print_table(
            ("id", "state", "tokens per request", "slots", "queue", "device"), [_info_row(info) for info in infos]
        )
    else:
        note(f"The runtime at {settings.runtime} has no models.")


async def ask(address: str, settings: GrpcSettings) -> list[ModelInfo]:
    """The models of the machine whose runtime is at ``address``. Raises ``CliError`` and ``SecurityError``."""
    from mantler.client import RuntimeClient
    from mantler.errors import ErrorCode, MantlerError
    from mantler.security.transport import Security

    async with RuntimeClient(address, Security.load(settings)) as client:
        try:
            return await client.list_models()
        except MantlerError as error:
            hint = "`mantler up` starts a runtime" if error.code is ErrorCode.MACHINE_OFFLINE else None
            raise CliError(f"{address}: {error.message.rstrip('.')}", hint=hint) from error


def _as_json(manifest: Manifest) -> dict[str, object]:
    return {
        "id": manifest.id,
        "architecture": manifest.architecture,
        "parameter_count": manifest.parameter_count,
        "quantization": manifest.quantization,
        "context_length": manifest.context_length,
        "size_bytes": manifest.size_bytes,
        "created_unix_s": manifest.created_unix_s,
        "source": manifest.source,
        "fingerprint": manifest.fingerprint,
    }


def _row(manifest: Manifest) -> tuple[str, ...]:
    return (
        manifest.id,
        manifest.architecture,
        f"{manifest.parameter_count / 1e6:.0f} M",
        manifest.quantization,
        str(manifest.context_length),
        human_bytes(manifest.size_bytes),
        show_time(manifest.created_unix_s),
        manifest.source,
    )


def _info_as_json(info: ModelInfo) -> dict[str, object]:
    return {**asdict(info), "state": info.state.value}


def _info_row(info: ModelInfo) -> tuple[str, ...]:
    loaded = info.deployment
    return (
        info.id,
        info.state.value,
        str(info.context_length if loaded is None else loaded.max_request_tokens),
        "" if loaded is None else f"{loaded.slots_used}/{loaded.slots}",
        "" if loaded is None else f"{loaded.queue_length}/{loaded.queue_capacity}",
        "" if loaded is None else loaded.device,
    )
