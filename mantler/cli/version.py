"""``mantler version``."""

from __future__ import annotations

import platform
from importlib import metadata

import click

from mantler import __version__
from mantler.cli.commands import Command
from mantler.cli.options import json_option
from mantler.cli.terminal import print_json, print_table

PACKAGES = ("onnxruntime", "onnxruntime-gpu", "grpcio", "aiohttp", "transformers", "numpy")


def installed(package: str) -> str | None:
    """The version of an installed package; does not import it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@click.command(cls=Command)
@json_option
def version(json: bool) -> None:
    """Show versions.

    Of Mantler, Python and the libraries that matter.

    \b
    Examples:
      mantler version
      mantler version --json | jq -r .onnxruntime
    """
    versions = {"mantler": __version__, "python": platform.python_version()}
    versions |= {package: found for package in PACKAGES if (found := installed(package))}
    if json:
        print_json(versions)
    else:
        print_table(("what", "version"), list(versions.items()))
