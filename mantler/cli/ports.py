"""Addresses to serve at: whether one is free, and how others reach it."""

from __future__ import annotations

import errno
import random
import socket

from mantler.cli.errors import CliError
from mantler.config import join_address, split_address

_LISTENING = range(20_000, 32_000)
"""Below where Linux (32,768) and the others (49,152) begin with the ports of outgoing connections."""
_TRIES = 30


def claim(address: str, flag: str) -> str:
    """``address``, checked to be free; port 0 becomes a free port. Raises :class:`CliError` naming ``flag``."""
    host, port = split_address(address)
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise CliError(f"{flag}: {host} is not a known host", hint="give an address of this machine") from error
    for candidate in [port] if port else _unassigned():
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((place[0], candidate, *place[2:]))
                probe.listen()
            except OSError as error:
                if error.errno == errno.EADDRINUSE and candidate != port:
                    continue
                raise _refusal(error, address, flag) from error
            return join_address(host, int(probe.getsockname()[1]))
    raise CliError(f"{flag}: no port is free", hint="end what listens on this machine")


def _unassigned() -> list[int]:
    """Some ports to try, and 0. Systems give others to outgoing connections, which could take them meanwhile."""
    return [*random.sample(_LISTENING, _TRIES), 0]


def reachable(address: str) -> str:
    """Where a client on this machine finds what serves at ``address``."""
    host, port = split_address(address)
    return join_address({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port)  # noqa: S104 - compared, not bound


def _refusal(error: OSError, address: str, flag: str) -> CliError:
    match error.errno:
        case errno.EADDRINUSE:
            return CliError(
                f"{flag}: {address} is in use by another process",
                hint=f"stop that process, or choose another port: {flag} {_other_port(address)}",
            )
        case errno.EACCES:
            return CliError(f"{flag}: this user may not serve at {address}", hint="choose a port from 1024 on")
        case errno.EADDRNOTAVAIL:
            return CliError(f"{flag}: {address} is no address of this machine", hint="127.0.0.1 and 0.0.0.0 always are")
        case _:
            return CliError(f"{flag}: cannot serve at {address}: {error.strerror}")


def _other_port(address: str) -> str:
    host, port = split_address(address)
    return join_address(host, port + 1 if port < 65535 else port - 1)
