"""What comes back from the process that renders conversations: a byte that says what it is, and UTF-8."""

from __future__ import annotations

RENDERED = b"r"
"""The text follows; nothing, for the template itself."""
REFUSED = b"x"
"""A list of JSON follows: the parameter at fault, and what is wrong with it."""
UNREADABLE = b"u"
"""What is wrong with the template follows."""
