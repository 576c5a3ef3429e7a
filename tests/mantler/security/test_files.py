"""What is said of files that cannot be used, and what happens when they change."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from mantler.security.errors import SecurityError
from mantler.security.files import MAX_FILE_BYTES, Material, TlsFiles, Watched
from tests.authority import LONG_AGO, Authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "certs")


@pytest.fixture
def files(authority: Authority) -> TlsFiles:
    issued = authority.issue("a")
    return TlsFiles(issued.certificate, issued.key, authority.certificate)


def test_good_files_are_read(files: TlsFiles) -> None:
    material = files.read()
    assert material.chain is not None
    assert material.chain.startswith(b"-----BEGIN CERTIFICATE-----")
    assert material.key is not None
    assert "PRIVATE KEY" not in repr(material)


def test_no_files_are_no_error() -> None:
    assert not TlsFiles()
    assert TlsFiles().read() == Material()


def _encrypt(path: Path | None) -> None:
    assert path is not None
    key = load_pem_private_key(path.read_bytes(), password=None)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))


def _swap_key(files: TlsFiles, authority: Authority) -> TlsFiles:
    return replace(files, key=authority.issue("b").key)


def _expire(files: TlsFiles, authority: Authority) -> TlsFiles:
    authority.issue("a", now=LONG_AGO)
    return files


def _not_yet(files: TlsFiles, authority: Authority) -> TlsFiles:
    authority.issue("a", now=datetime.now(UTC) + timedelta(days=2))
    return files


def _garbage(name: str, content: bytes) -> Callable[[TlsFiles, Authority], TlsFiles]:
    def change(files: TlsFiles, authority: Authority) -> TlsFiles:
        path = authority.folder / "garbage"
        path.write_bytes(content)
        changed: dict[str, Any] = {name: path}
        return replace(files, **changed)

    return change


def _encrypted(files: TlsFiles, authority: Authority) -> TlsFiles:
    _encrypt(files.key)
    return files


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda files, _: replace(files, key=None), "tls_key: must be given beside tls_cert"),
        (lambda files, _: replace(files, cert=None), "tls_cert: must be given beside tls_key"),
        (
            lambda files, _: replace(files, cert=Path("/nowhere/a.pem")),
            "tls_cert: /nowhere/a.pem cannot be read: No such file or directory",
        ),
        (lambda files, _: replace(files, ca=Path("/")), "tls_ca: / cannot be read: Is a directory"),
        (_garbage("cert", b"no certificate"), "tls_cert: .*garbage holds no certificate in PEM form"),
        (_garbage("key", b"no key"), "tls_key: .*garbage holds no private key in PEM form"),
        (_garbage("ca", b""), "tls_ca: .*garbage holds no certificate in PEM form"),
        (_garbage("ca", b"x" * (MAX_FILE_BYTES + 1)), "tls_ca: .*garbage is larger than 1048576 bytes"),
        (_encrypted, "tls_key: the key in .* must not be encrypted"),
        (_swap_key, r"tls_key: the key in .*b.key does not belong to the certificate in .*a.pem"),
        (_expire, r"tls_cert: the certificate in .*a.pem ended on \d{4}-\d\d-\d\d"),
        (_not_yet, r"tls_cert: the certificate in .*a.pem begins only on \d{4}-\d\d-\d\d"),
    ],
)
def test_what_is_wrong_is_named(
    change: Callable[[TlsFiles, Authority], TlsFiles], words: str, files: TlsFiles, authority: Authority
) -> None:
    changed = change(files, authority)
    with pytest.raises(SecurityError, match=f"^{words}"):
        changed.read()


def test_files_of_https_are_named_as_such(files: TlsFiles) -> None:
    with pytest.raises(SecurityError, match=r"^http_tls_key: must be given beside http_tls_cert$"):
        TlsFiles(files.cert, prefix="http_tls_").read()


def test_changed_files_are_made_again_and_bad_ones_are_not(
    files: TlsFiles, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(files, files.read(), lambda material: material.chain)
    first = watched.newest()
    assert watched.newest() is first
    assert files.key is not None
    key = files.key.read_bytes()
    authority.issue("a")
    new_key = files.key.read_bytes()
    files.key.write_bytes(key)
    with caplog.at_level(logging.INFO):
        assert watched.newest() is first
        assert watched.newest() is first
        files.key.write_bytes(new_key)
        assert watched.newest() not in (first, None)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert "old ones stay: tls_key: the key in" in told[0]
    assert "are used from now on" in told[1]
