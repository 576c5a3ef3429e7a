"""Commands and groups that print their help where nothing is asked, and have hints where a word is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click


class Command(click.Command):
    """A command whose errors all know where they happened."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Click forgets the context of an option without its value."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise


class Group(click.Group):
    """A group of commands.

    Args:
        meant: words that people try, and what they mean here: ``{"rm": "remove"}``.
    """

    command_class = Command

    def __init__(self, *arguments: Any, meant: Mapping[str, str] | None = None, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.meant = dict(meant or {})

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Prints the help where nothing is asked: that is an answer, not an error."""
        if not args and self.no_args_is_help and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), color=ctx.color)
            ctx.exit()
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise


def hint(error: click.UsageError) -> str:
    """What to try instead."""
    path = error.ctx.command_path if error.ctx else "mantler"
    if isinstance(error, click.exceptions.NoSuchCommand):
        group = error.ctx.command if error.ctx else None
        meant = group.meant.get(error.command_name) if isinstance(group, Group) else None
        close = error.possibilities or ()
        words = [meant] if meant is not None else close
        if words:
            return f"did you mean {' or '.join(f'`{path} {word}`'.replace(' `', '`') for word in words)}?"
    return f"{path} --help shows what it takes"
