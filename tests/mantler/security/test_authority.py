"""An authority and what it issues."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from mantler.security.authority import AUTHORITY_LIFE, LIFE, issue, list_issued, make_authority
from mantler.security.errors import SecurityError

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_an_authority_may_sign_certificates_and_nothing_else(tmp_path: Path) -> None:
    made = make_authority(tmp_path, now=NOW)
    read = certificate(made.certificate)
    assert read.not_valid_after_utc == NOW + AUTHORITY_LIFE
    limits = read.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (limits.critical, limits.value.ca, limits.value.path_length) == (True, True, 0)
    usage = read.extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.key_cert_sign, usage.crl_sign, usage.digital_signature) == (True, True, False)
    key = read.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"


def test_what_it_issues_serves_both_sides(tmp_path: Path) -> None:
    authority = certificate(make_authority(tmp_path, now=NOW).certificate)
    made = issue(tmp_path, "gpu-1", ["GPU-1.lan", "192.168.1.20", "fd00::1"], now=NOW)
    read = certificate(made.certificate)
    read.verify_directly_issued_by(authority)
    assert read.not_valid_after_utc == made.ends == NOW + LIFE
    assert read.not_valid_before_utc < NOW
    assert not read.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert set(read.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    }
    assert made.hosts == ("gpu-1.lan", "localhost", "192.168.1.20", "fd00::1", "127.0.0.1", "::1")


def test_a_certificate_does_not_outlive_its_authority(tmp_path: Path) -> None:
    make_authority(tmp_path, now=NOW)
    late = NOW + AUTHORITY_LIFE - timedelta(days=10)
    assert issue(tmp_path, "a", ["a"], now=late).ends == NOW + AUTHORITY_LIFE
    with pytest.raises(SecurityError, match=r"the authority in .* ended on 2039-12-30"):
        issue(tmp_path, "b", ["b"], now=NOW + AUTHORITY_LIFE + timedelta(days=1))


def test_keys_are_their_owners(tmp_path: Path) -> None:
    folder = tmp_path / "home" / "certs"
    make_authority(folder)
    issue(folder, "a", ["a"])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for name in ("ca.key", "a.key"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    assert sorted(path.name for path in folder.iterdir()) == ["a.key", "a.pem", "ca.key", "ca.pem"]


def test_nothing_is_overwritten_unless_forced(tmp_path: Path) -> None:
    make_authority(tmp_path)
    first = issue(tmp_path, "a", ["a"]).certificate.read_bytes()
    with pytest.raises(SecurityError, match=r"ca\.pem exists"):
        make_authority(tmp_path)
    with pytest.raises(SecurityError, match=r"a\.pem exists"):
        issue(tmp_path, "a", ["a"])
    assert (tmp_path / "a.pem").read_bytes() == first
    assert issue(tmp_path, "a", ["a"], force=True).certificate.read_bytes() != first
    (tmp_path / "b.key").touch()
    with pytest.raises(SecurityError, match=r"b\.key exists"):
        issue(tmp_path, "b", ["b"])


@pytest.mark.parametrize("name", ["ca", "", "a/b", "../a", ".a", "a b", "a" * 64, "ä"])
def test_bad_names_are_refused(name: str, tmp_path: Path) -> None:
    make_authority(tmp_path)
    with pytest.raises(SecurityError, match=r"^NAME: must be at most 63 letters"):
        issue(tmp_path, name, ["a"])


@pytest.mark.parametrize("host", ["", "a:50051", "a b", "10.0.0", "*.lan", "-a", "a..b", "ä.de", "[::1]", "a" * 64])
def test_bad_hosts_are_refused(host: str, tmp_path: Path) -> None:
    make_authority(tmp_path)
    with pytest.raises(SecurityError, match=r"^--host: must be a DNS name"):
        issue(tmp_path, "a", ["good.lan", host])
    assert not (tmp_path / "a.key").exists()


def test_without_an_authority_nothing_is_issued(tmp_path: Path) -> None:
    with pytest.raises(SecurityError, match=r"there is no authority in .*: ca\.pem is missing"):
        issue(tmp_path, "a", ["a"])
    make_authority(tmp_path)
    other = tmp_path / "other"
    make_authority(other)
    (other / "ca.key").replace(tmp_path / "ca.key")
    with pytest.raises(SecurityError, match=r"ca\.key does not belong to .*ca\.pem"):
        issue(tmp_path, "a", ["a"])


def test_the_list_has_the_authority_first(tmp_path: Path) -> None:
    assert list_issued(tmp_path) == []
    make_authority(tmp_path)
    for name in ("z", "a"):
        issue(tmp_path, name, [name])
    assert [(issued.name, issued.is_authority) for issued in list_issued(tmp_path)] == [
        ("ca", True),
        ("a", False),
        ("z", False),
    ]
    (tmp_path / "bad.pem").write_text("nothing")
    with pytest.raises(SecurityError, match=r"bad\.pem holds no certificate"):
        list_issued(tmp_path)
