"""The operator's token: whoever can read it may change what a mesh serves.

It lies in a private file of the facade's home, so that commands on that machine need nothing else. Operators elsewhere
get a copy in ``MANTLER_OPERATOR_TOKEN``. A new one is made when the file is deleted.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from mantler.tenancy.keys import SECRET_BYTES

OPERATOR_PREFIX = "mo_live_"
FILE = "operator-token"


def operator_token(home: Path) -> str:
    """The token of ``home``, made where there is none. Raises ``OSError``."""
    path = home / FILE
    try:
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        pass
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = home / f".{FILE}.{os.getpid()}"
    draft.touch(mode=0o600)
    try:
        draft.write_text(OPERATOR_PREFIX + secrets.token_urlsafe(SECRET_BYTES) + "\n", encoding="ascii")
        # Whole or not at all, and never over one that another process has made meanwhile.
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    return path.read_text(encoding="ascii").strip()
