"""Which addresses stay on the machine."""

from __future__ import annotations

import pytest

from mantler.security.loopback import is_loopback


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:50051",
        "127.1.2.3:0",
        "[::1]:50051",
        "[::ffff:127.0.0.1]:50051",
        "localhost:50051",
        "LocalHost:50051",
        "unix:/run/mantler.sock",
        "unix-abstract:mantler",
    ],
)
def test_these_stay(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0:50051",
        "[::]:50051",
        "10.0.0.1:50051",
        "[::ffff:10.0.0.1]:50051",
        "[fe80::1]:50051",
        "127.0.0.1.example.com:50051",
        "localhost.example.com:50051",
        "gpu-1:50051",
        "127.0.0.1",
        "",
    ],
)
def test_these_leave(address: str) -> None:
    assert not is_loopback(address)
