"""How a command says what went wrong: ``error: …``, then ``hint: …`` where something can be done about it."""

from __future__ import annotations

from typing import IO, Any

import click

from mantler.cli.terminal import style

EXIT_FAILED = 1
EXIT_USAGE = 2


class CliError(click.ClickException):
    """An expected failure of a command, told without a traceback.

    Args:
        message: what is wrong, a sentence or a part of one, without a full stop.
        hint: what to do about it.
        details: lines to print between the two, such as the last output of a process.
    """

    exit_code = EXIT_FAILED

    def __init__(self, message: str, hint: str | None = None, details: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.hint = hint
        self.details = details

    def show(self, file: IO[Any] | None = None) -> None:
        """Prints the error, on stderr if no file is given."""
        show_error(self.format_message(), self.hint, self.details, file)


class BadUsage(CliError):  # noqa: N818 - it reads as what it is
    """A flag, a variable or a key of the settings file has a value that cannot be used."""

    exit_code = EXIT_USAGE


def show_error(message: str, hint: str | None, details: tuple[str, ...] = (), file: IO[Any] | None = None) -> None:
    """Prints an error with its hint, on stderr if no file is given."""
    click.echo(f"{style('error:', 'red', bold=True)} {message}", file=file, err=True)
    for line in details:
        click.echo(f"  {line}", file=file, err=True)
    if hint:
        click.echo(f"{style('hint:', 'cyan', bold=True)} {hint}", file=file, err=True)
