"""Where others reach this machine. Pure."""

from __future__ import annotations

from typing import Literal

from mantler.config import join_address, split_address
from mantler.security.loopback import is_loopback, is_wildcard

Reach = Literal["auto", "dial", "tunnel"]


def address_for(facade: str, reach: Reach, listening: str, advertised: str | None) -> str:
    """What this machine tells ``facade`` about where to dial it; empty where that is in vain.

    Args:
        facade: ``HOST:PORT``.
        listening: ``HOST:PORT`` of the runtime's server.
        advertised: what an operator says instead.
    """
    if reach == "tunnel":
        return ""
    if advertised:
        return advertised
    host, port = split_address(listening)
    if reach == "auto" and is_loopback(listening) and not is_loopback(facade):
        return ""
    # Nobody knows which of its addresses others see; the facade sees which one it comes from.
    return f":{port}" if is_wildcard(host) else join_address(host, port)
