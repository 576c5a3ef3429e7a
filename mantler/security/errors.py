"""What stops a process or a command whose connections would not be as safe as its settings say."""

from __future__ import annotations


class SecurityError(Exception):
    """Files of TLS that cannot be used, or a connection that would be open to others.

    Args:
        message: names the setting or the address and what is wrong, without a full stop.
        hint: what to do about it.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
