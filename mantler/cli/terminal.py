"""What commands print: data on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

import click


def style(text: str, color: str | None = None, *, bold: bool = False, dim: bool = False) -> str:
    """``text`` in a style, for click to print: it takes colours out where no terminal is, NO_COLOR takes them here."""
    return text if os.environ.get("NO_COLOR") else click.style(text, fg=color, bold=bold or None, dim=dim or None)


def note(text: str) -> None:
    """A line about what is going on, on stderr."""
    click.echo(text, err=True)


def print_json(value: object) -> None:
    """``value`` on stdout, indented for people where a person looks."""
    click.echo(json.dumps(value, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False))


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns on stdout. Nothing is cut off: the output may go through a pipe."""
    widths = [max(len(cell) for cell in column) for column in zip(headers, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()

    click.echo(style(line(headers), bold=True))
    for row in rows:
        click.echo(line(row))


def human_bytes(count: float) -> str:
    """``1.5 GB``; powers of 1000, as disks and downloads are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.5 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
