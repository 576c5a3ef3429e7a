"""``mantler pull``: fetch a model and convert it for this machine."""

from __future__ import annotations

import click

from mantler.cli.commands import Command
from mantler.cli.options import option, settings_options
from mantler.cli.settings import read
from mantler.cli.terminal import human_bytes, note
from mantler.cli.values import OneOf
from mantler.config import ClientSettings, RuntimeSettings
from runtime_server.models.quantizations import QUANTIZATIONS


@click.command(cls=Command)
@click.argument("name")
@option(
    "--as",
    "as_name",
    env="MANTLER_PULL_AS",
    help="The id to store it under.",
    shown_default="made from NAME",
    metavar="ID",
)
@option(
    "--quantization",
    env="MANTLER_PULL_QUANTIZATION",
    help="For the processor: int8 keeps 4-bit weights as they are and rounds others to 8 bits; fp32 keeps all, four "
    "times as large. For a card: bf16, or int4 with 4 bits for each weight of the layers.",
    shown_default="bf16 where CUDA works, else int8",
    type=OneOf(QUANTIZATIONS),
)
@option("--force", env="MANTLER_PULL_FORCE", help="Fetch and convert it again if it is stored.", is_flag=True)
@settings_options(ClientSettings, only=("home",))
def pull(name: str, quantization: str | None, force: bool, as_name: str | None, flags: dict[str, object]) -> None:
    """Fetch a model and convert it.

    The ONNX model goes into the store of MANTLER_HOME, and its id to stdout. NAME is one that Mantler knows, a
    GGUF file, a folder with safetensors, or hf:ORG/REPO. A pull that was interrupted goes on where it can.

    \b
    Examples:
      mantler pull smollm2:135m
      mantler pull ~/models/qwen2.5-0.5b-instruct-q8_0.gguf --as qwen2.5:0.5b
      mantler pull hf:Qwen/Qwen3-0.6B --quantization fp32
    """
    settings = read(ClientSettings, flags)
    from mantler.cli.progress import LoadBars
    from runtime_server.backends.choice import quantization_for
    from runtime_server.models.pull import pull as pull_model

    with LoadBars() as bars:
        manifest = pull_model(
            name,
            settings.home,
            as_name=as_name,
            quantization=quantization or quantization_for("auto"),
            force=force,
            progress=bars.add(name).show,
            notice=note,
        )
    note(f"{manifest.id} is stored: {human_bytes(manifest.size_bytes)}, {manifest.quantization}.")
    click.echo(manifest.id)


def ensure(settings: RuntimeSettings) -> None:
    """Pulls those of the runtime's models that are not stored. Raises ``PullError``."""
    from runtime_server.models.errors import PullError
    from runtime_server.models.store import ModelStore

    store = ModelStore(settings.models_dir)
    for model_id in settings.model:
        try:
            stored = store.get(model_id) is not None
        except PullError as error:
            note(f"{error.message} It is pulled again.")
            stored = False
        if not stored:
            from mantler.cli.progress import LoadBars
            from runtime_server.backends.choice import quantization_for
            from runtime_server.models.pull import pull as pull_model

            kind = quantization_for(settings.device)
            with LoadBars() as bars:
                progress = bars.add(model_id).show
                pull_model(model_id, settings.home, quantization=kind, progress=progress, notice=note)
