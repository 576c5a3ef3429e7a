"""Where the ``mantler`` command enters: its subcommands, and what every one of them does with an error."""

from __future__ import annotations

import os
import sys

import click

from mantler import __version__
from mantler.__main__ import EXIT_INTERRUPTED
from mantler.cli import (
    certs,
    chat,
    deploy,
    doctor,
    fit,
    keys,
    logs,
    machines,
    mantles,
    models,
    pull,
    serve,
    tokens,
    up,
    version,
)
from mantler.cli.commands import Group, hint
from mantler.cli.drill.command import drill
from mantler.cli.errors import EXIT_FAILED, CliError, show_error
from mantler.errors import MantlerError
from mantler.security.errors import SecurityError
from runtime_server.models.errors import PullError


@click.group(
    cls=Group,
    meant={
        "serve": "up", "start": "up", "run": "chat", "list": "models", "ls": "models", "ps": "models --remote",
        "rm": "models remove", "remove": "models remove",
        "nodes": "machines", "cordon": "drain", "uncordon": "drain --undo", "load": "deploy", "unload": "undeploy",
        "deployments": "mantles",
    },
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)  # fmt: skip
@click.version_option(__version__, prog_name="mantler", message="%(prog)s %(version)s")
def cli() -> None:
    """Mantler: an inference mesh for machines you own. gRPC inside, OpenAI-style REST outside.

    Data goes to stdout, logs go to stderr. Every flag is also an environment variable, and a setting can stand in
    config.toml in MANTLER_HOME.

    \b
    Examples:
      mantler up                      serve the default model
      mantler chat                    talk to it in the terminal
      mantler keys create --name ci   make an API key
      mantler doctor                  look for what is wrong
    """


for _command in (
    up.up, serve.runtime, serve.facade, pull.pull, models.models, fit.fit, keys.keys, certs.certs,
    machines.machines, mantles.mantles, deploy.deploy, deploy.undeploy, machines.drain, tokens.tokens,
    chat.chat, doctor.doctor, drill, version.version,
):  # fmt: skip
    cli.add_command(_command)


def main() -> None:
    """Runs the command and exits: 0, 1 for a failure, 2 for bad usage, 130 after Ctrl-C."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs the command and returns its exit code."""
    logs.configure_brief()
    try:
        code = cli.main(arguments, prog_name="mantler", standalone_mode=False)
        sys.stdout.flush()
    except CliError as error:
        error.show()
        return error.exit_code
    except click.UsageError as error:
        text = error.message if isinstance(error, click.exceptions.NoSuchCommand) else error.format_message()
        show_error(text.rstrip("."), hint(error))
        return error.exit_code
    except click.ClickException as error:
        show_error(error.format_message().rstrip("."), None)
        return error.exit_code
    except (PullError, SecurityError) as error:
        show_error(error.message.rstrip("."), error.hint)
        return EXIT_FAILED
    except MantlerError as error:
        show_error(error.message.rstrip("."), None)
        return EXIT_FAILED
    except (KeyboardInterrupt, click.Abort):
        click.echo("", err=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader has left. Python would flush stdout once more at the end and complain: give it another one.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        if error.filename is None:
            raise
        show_error(f"{error.filename}: {error.strerror}", "`mantler doctor` looks for causes")
        return EXIT_FAILED
    return code if isinstance(code, int) else 0
