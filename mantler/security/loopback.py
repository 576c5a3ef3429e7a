"""Which addresses never leave the machine. Pure, and the only place that decides it."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address

from mantler.config import split_address

_UNIX_SCHEMES = ("unix:", "unix-abstract:")


def is_socket(address: str) -> bool:
    """Whether ``address`` is a Unix socket, which files' permissions guard."""
    return address.startswith(_UNIX_SCHEMES)


def is_loopback(address: str) -> bool:
    """Whether what is sent to ``address`` stays on this machine: 127.0.0.0/8, ::1, localhost or a Unix socket.

    A name other than localhost may mean anything tomorrow, and an address that cannot be read counts as one beyond.
    """
    if is_socket(address):
        return True
    try:
        host, _ = split_address(address)
    except ValueError:
        return False
    if host.lower() == "localhost":
        return True
    try:
        ip = ip_address(host)
    except ValueError:
        return False
    mapped = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
    return (mapped or ip).is_loopback


def is_wildcard(host: str) -> bool:
    """Whether ``host`` stands for every address of this machine."""
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return False
