"""The error of getting a model onto this machine."""

from __future__ import annotations


class PullError(Exception):
    """A model cannot be fetched, read, converted or found. Made for the person at the terminal.

    Args:
        message: a sentence that says what is wrong. It names files by their last component only.
        hint: what to do about it.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message} ({self.hint})"
