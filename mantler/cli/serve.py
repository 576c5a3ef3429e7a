"""``mantler runtime`` and ``mantler facade``: one serving process each."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Coroutine
from typing import Any

import click

from mantler.cli import lifeline, ports
from mantler.cli.commands import Command
from mantler.cli.errors import CliError
from mantler.cli.options import option, settings_options
from mantler.cli.settings import read
from mantler.config import FacadeSettings, RuntimeSettings, Settings
from mantler.telemetry import configure_logging

_HARD_END_S = 5.0
"""Time beyond the drain timeout after which an orphan ends the hard way."""
_GRPC_EXPERIMENTS = "-event_engine_client"
"""One thread reads gRPC, not a pool that hands each message on: a third of the facade's time (docs/decisions/0011)."""

_GRPC_FORK_SUPPORT = "0"
"""Children are started and never forked into; gRPC would complain of each one that starts beside its threads."""

_lifeline_option = option(
    "--exit-with-stdin",
    env="MANTLER_EXIT_WITH_STDIN",
    help="Stop when standard input closes, so that no process outlives the one that started it.",
    is_flag=True,
)


@click.command(cls=Command)
@settings_options(RuntimeSettings)
@_lifeline_option
def runtime(flags: dict[str, object], exit_with_stdin: bool) -> None:
    """Run models and serve them over gRPC.

    SIGTERM and Ctrl-C let running requests finish.

    \b
    Examples:
      mantler runtime
      mantler runtime --model smollm2:135m --max-batch 16
      mantler runtime --runtime 0.0.0.0:50051 --tls-cert a.pem --tls-key a.key --tls-ca ca.pem
    """
    settings = read(RuntimeSettings, flags)
    _prepare(settings, settings.runtime, "--runtime", settings.drain_timeout_s, exit_with_stdin)
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", _GRPC_FORK_SUPPORT)
    from runtime_server.server import RuntimeFailure, serve

    try:
        _run(serve(settings))
    except RuntimeFailure as error:
        raise CliError(str(error).rstrip("."), hint="`mantler doctor` looks for causes") from error


@click.command(cls=Command)
@settings_options(FacadeSettings)
@_lifeline_option
def facade(flags: dict[str, object], exit_with_stdin: bool) -> None:
    """Serve REST in front of a runtime.

    It speaks the OpenAI API and is guarded by API keys.
    SIGTERM and Ctrl-C let open responses finish. MANTLER_BOOTSTRAP_KEY sets the first API key.

    \b
    Examples:
      mantler facade
      mantler facade --http 0.0.0.0:8080 --http-tls-cert web.pem --http-tls-key web.key
      MANTLER_LOG_FORMAT=json mantler facade
    """
    settings = read(FacadeSettings, flags)
    _prepare(settings, settings.http, "--http", settings.drain_timeout_s, exit_with_stdin)
    # gRPC reads it once, when it is imported.
    os.environ.setdefault("GRPC_EXPERIMENTS", _GRPC_EXPERIMENTS)
    from facade.app import serve

    try:
        _run(serve(settings))
    except OSError as error:
        if error.filename is not None:  # a file, not an address
            raise
        raise CliError(f"cannot serve at {settings.http}: {error.strerror}", hint="choose another --http") from error


def _prepare(settings: Settings, address: str, flag: str, drain_timeout_s: float, exit_with_stdin: bool) -> None:
    if exit_with_stdin:
        lifeline.exit_with_stdin(drain_timeout_s + _HARD_END_S)
    configure_logging(settings)
    ports.claim(address, flag)


def _run(serving: Coroutine[Any, Any, None]) -> None:
    if sys.platform == "win32":
        asyncio.run(serving)
    else:
        import uvloop

        uvloop.run(serving)
