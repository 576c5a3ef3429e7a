"""The operator's token: whoever can read it may change what a mesh serves.

It lies in a private file of the facade's home, so that commands on that machine need nothing else. Operators elsewhere
get a copy in ``MANTLER_OPERATOR_TOKEN``. A facade that starts without the file makes a new one.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from mantler.errors import invalid
from mantler.tenancy.keys import is_operator_token, mint_operator_token

FILE = "operator-token"


def read_operator_token(home: Path) -> str | None:
    """The token of ``home``, if it has one.

    Raises ``OSError``, and INVALID_PARAMETER where the file holds something else.
    """
    path = home / FILE
    try:
        token = path.read_text(encoding="utf-8", errors="replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not is_operator_token(token):
        raise invalid("operator_token", f"{path} holds no operator's token; the facade makes one where it is missing.")
    return token


def operator_token(home: Path) -> str:
    """The token of ``home``, made where there is none. Raises as :func:`read_operator_token` does."""
    token = read_operator_token(home)
    if token is not None:
        return token
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(prefix=f".{FILE}.", dir=home)
    try:
        with open(handle, "w", encoding="ascii") as file:
            file.write(mint_operator_token() + "\n")
        # Whole or not at all, and never over one that another process has made meanwhile.
        os.link(draft, home / FILE)
    except FileExistsError:
        pass
    finally:
        os.unlink(draft)
    return operator_token(home)
