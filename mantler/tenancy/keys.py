"""API keys and tokens as text: how they are made, recognised, hashed and shown."""

from __future__ import annotations

import hashlib
import re
import secrets

PREFIX = "mk_live_"
"""What every key begins with, so that scanners find a leaked one."""
TOKEN_PREFIX = "mt_live_"  # noqa: S105 - the beginning of all of them
"""The same of machine tokens."""
OPERATOR_PREFIX = "mo_live_"
"""The same of operators' tokens."""
SECRET_BYTES = 32
"""Random bytes of a minted key or token: 256 bits."""
MIN_SECRET_CHARS = 24
MAX_SECRET_CHARS = 256
SHOWN_SECRET_CHARS = 4

_SECRET = rf"[A-Za-z0-9_-]{{{MIN_SECRET_CHARS},{MAX_SECRET_CHARS}}}"
_KEY = re.compile(PREFIX + _SECRET)
_TOKEN = re.compile(TOKEN_PREFIX + _SECRET)
_OPERATOR_TOKEN = re.compile(OPERATOR_PREFIX + _SECRET)


def mint_key() -> str:
    """A new key: ``mk_live_`` and 256 random bits in URL-safe base64."""
    return PREFIX + secrets.token_urlsafe(SECRET_BYTES)


def mint_token() -> str:
    """A new machine token, of the same strength."""
    return TOKEN_PREFIX + secrets.token_urlsafe(SECRET_BYTES)


def mint_operator_token() -> str:
    """A new operator's token, of the same strength."""
    return OPERATOR_PREFIX + secrets.token_urlsafe(SECRET_BYTES)


def mint_key_id() -> str:
    """A new name for a key, which is no secret."""
    return "key_" + secrets.token_hex(8)


def is_well_formed(key: str) -> bool:
    """Whether ``key`` could be one of ours: the prefix and 24 to 256 letters, digits, ``-`` and ``_``."""
    return _KEY.fullmatch(key) is not None


def is_token(text: str) -> bool:
    """The same of machine tokens."""
    return _TOKEN.fullmatch(text) is not None


def is_operator_token(text: str) -> bool:
    """The same of operators' tokens."""
    return _OPERATOR_TOKEN.fullmatch(text) is not None


def hash_key(key: str) -> str:
    """What is stored instead of ``key``: its SHA-256 in hex."""
    # A slow, salted hash protects secrets that can be guessed. A key has its full entropy, so one fast hash of
    # all of it cannot be reversed, and it can be looked up by an index on every request.
    return hashlib.sha256(key.encode()).hexdigest()


def display_prefix(key: str) -> str:
    """The beginning of ``key``, enough to tell keys apart in a list and too little to guess the rest."""
    return key[: len(PREFIX) + SHOWN_SECRET_CHARS] + "…"
