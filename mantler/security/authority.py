"""An authority of one's own: a folder with its key, and the certificates that it issues (RFC 5280).

``ca.pem`` and ``ca.key`` are the authority's, ``NAME.pem`` and ``NAME.key`` those of a machine or a facade. Keys are
ECDSA on P-256, readable by their owner only.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mantler.security.errors import SecurityError
from mantler.security.files import hosts_of

AUTHORITY = "ca"
AUTHORITY_LIFE = timedelta(days=3650)
LIFE = timedelta(days=365)
CLOCK_SKEW = timedelta(minutes=5)
"""Certificates begin so long before they are made, for machines whose clocks are behind."""
OWN_HOSTS = ("localhost", "127.0.0.1", "::1")
"""In every certificate: commands on a machine reach its runtime there."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DNS_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*")
_NUMBERS_AND_DOTS = re.compile(r"[0-9.]+")


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate in the folder."""

    name: str
    hosts: tuple[str, ...]
    """DNS names and IP addresses; an authority has none."""
    ends: datetime
    certificate: Path
    key: Path | None
    """``None`` where only the certificate is here."""

    @property
    def is_authority(self) -> bool:
        """Whether it issues the others."""
        return self.name == AUTHORITY


def make_authority(folder: Path, *, force: bool = False, now: datetime | None = None) -> Issued:
    """A new authority in ``folder``.

    Raises :class:`SecurityError` if there is one and not ``force``, and ``OSError`` if it cannot be written.
    """
    now = now or datetime.now(UTC)
    _refuse_to_overwrite(folder, AUTHORITY, force)
    key = ec.generate_private_key(ec.SECP256R1())
    # Two authorities of one name would be mistaken for each other by those who look for an issuer by name.
    subject = _subject(f"Mantler authority {x509.random_serial_number():040x}"[:40])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        _builder(subject, subject, key.public_key(), now, now + AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )
    return _keep(folder, AUTHORITY, key, certificate)


def issue(folder: Path, name: str, hosts: Sequence[str], *, force: bool = False, now: datetime | None = None) -> Issued:
    """A new key and a certificate of the authority in ``folder``, for a server and a client in one.

    It is good for a year, or as long as its authority.

    Args:
        name: of the files.
        hosts: DNS names and IP addresses by which others reach the machine, besides :data:`OWN_HOSTS`.

    Raises: :class:`SecurityError` for a bad name or host, for one that exists if not ``force``, and without an
        authority; ``OSError`` if files cannot be written.
    """
    now = now or datetime.now(UTC)
    if not _NAME.fullmatch(name) or name == AUTHORITY:
        raise SecurityError(
            f"NAME: must be at most 63 letters, digits, '.', '_' or '-' and not {AUTHORITY!r}, got {name!r}"
        )
    names = [_general_name(host) for host in dict.fromkeys([*hosts, *OWN_HOSTS])]
    authority_key, authority = _load_authority(folder, now)
    _refuse_to_overwrite(folder, name, force)
    key = ec.generate_private_key(ec.SECP256R1())
    ends = min(now + LIFE, authority.not_valid_after_utc)
    builder = _builder(_subject(name), authority.subject, key.public_key(), now, ends)
    certificate = _for_both_sides(builder, names, key.public_key(), authority).sign(authority_key, hashes.SHA256())
    return _keep(folder, name, key, certificate)


def list_issued(folder: Path) -> list[Issued]:
    """The certificates in ``folder``, the authority first. Raises :class:`SecurityError` for a file that is none."""
    found = [_describe(path, _load_certificate(path)) for path in sorted(folder.glob("*.pem"))]
    return sorted(found, key=lambda issued: not issued.is_authority)


def _load_authority(folder: Path, now: datetime) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    certificate_path, key_path = _paths(folder, AUTHORITY)
    hint = "`mantler certs init` makes an authority"
    for path in (certificate_path, key_path):
        if not path.exists():
            raise SecurityError(f"there is no authority in {folder}: {path.name} is missing", hint)
    certificate = _load_certificate(certificate_path)
    try:
        key = load_pem_private_key(key_path.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise SecurityError(f"{key_path} holds no private key in PEM form", hint) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise SecurityError(f"{key_path} does not belong to {certificate_path}", hint)
    if certificate.not_valid_after_utc < now:
        raise SecurityError(f"the authority in {folder} ended on {certificate.not_valid_after_utc:%Y-%m-%d}", hint)
    return key, certificate


def _load_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as error:
        raise SecurityError(f"{path} holds no certificate in PEM form") from error


def _describe(path: Path, certificate: x509.Certificate) -> Issued:
    key = path.with_suffix(".key")
    ends = certificate.not_valid_after_utc
    return Issued(path.stem, hosts_of(certificate), ends, path, key if key.exists() else None)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, ends: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(ends)
    )


def _for_both_sides(
    builder: x509.CertificateBuilder,
    names: Sequence[x509.GeneralName],
    key: ec.EllipticCurvePublicKey,
    authority: x509.Certificate,
) -> x509.CertificateBuilder:
    """``builder`` with what makes a certificate one of servers and of clients, called ``names``."""
    issuer = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    sides = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(sides), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer), critical=False)
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        # 10.0.0 is a slip of the pen, not the name of a host.
        if _DNS_NAME.fullmatch(host) and not _NUMBERS_AND_DOTS.fullmatch(host):
            return x509.DNSName(host.lower())
    raise SecurityError(f"--host: must be a DNS name in ASCII or an IP address, without a port, got {host!r}")


def _paths(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}.pem", folder / f"{name}.key"


def _refuse_to_overwrite(folder: Path, name: str, force: bool) -> None:
    there = next((path for path in _paths(folder, name) if path.exists()), None)
    if there is not None and not force:
        raise SecurityError(f"{there} exists", "--force replaces it")


def _keep(folder: Path, name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> Issued:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    certificate_path, key_path = _paths(folder, name)
    _write(key_path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
    _write(certificate_path, certificate.public_bytes(Encoding.PEM), 0o644)
    return _describe(certificate_path, certificate)


def _write(path: Path, content: bytes, mode: int) -> None:
    """All of the file or nothing, and never readable by more people than ``mode`` says."""
    number, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(number, "wb") as file:
            os.fchmod(number, mode)
            file.write(content)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink()
        raise
