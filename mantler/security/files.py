"""The PEM files that the settings name: read, checked, and watched for changes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from mantler.config import FacadeSettings, GrpcSettings
from mantler.security.errors import SecurityError

if TYPE_CHECKING:
    from cryptography import x509

MAX_FILE_BYTES = 2**20
"""A whole system's authorities fit, a file that is no certificate at all is not read to its end."""

_T = TypeVar("_T")
Stamps = tuple[tuple[int, int, int] | None, ...]
"""Of files: another one after each change."""
_HINT = "`mantler certs` makes an authority, certificates and keys"
_log = logging.getLogger("mantler.security")


@dataclass(frozen=True, slots=True)
class Material:
    """What the files hold, in PEM and checked."""

    chain: bytes | None = None
    """The own certificate and those between it and its authority."""
    key: bytes | None = field(default=None, repr=False)
    authorities: bytes | None = None
    stamps: Stamps = ()
    """Of the files before they were read."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where the material lies. ``prefix`` and ``cert``, ``key`` or ``ca`` make the name of a setting."""

    cert: Path | None = None
    key: Path | None = None
    ca: Path | None = None
    prefix: str = "tls_"

    def __bool__(self) -> bool:
        return bool(self.cert or self.key or self.ca)

    def read(self, now: datetime | None = None) -> Material:
        """What the files hold at the time ``now``.

        Raises :class:`SecurityError` naming the setting whose file is missing, unreadable, expired or of another key.
        """
        now = now or datetime.now(UTC)
        stamps = self.stamps()
        for given, missing, name in ((self.cert, self.key, "key"), (self.key, self.cert, "cert")):
            if given and not missing:
                other = "cert" if name == "key" else "key"
                raise SecurityError(f"{self.prefix}{name}: must be given beside {self.prefix}{other}", _HINT)
        chain = self._certificates("cert", self.cert, now) if self.cert else None
        key = self._key(self.key, chain) if self.key and chain else None
        authorities = self._certificates("ca", self.ca, now) if self.ca else None
        return Material(chain, key, authorities, stamps)

    def _certificates(self, name: str, path: Path, now: datetime) -> bytes:
        """The file with at least one certificate, whose first one must be valid now."""
        from cryptography import x509

        content = self._content(name, path)
        try:
            certificates = x509.load_pem_x509_certificates(content)
        except ValueError as error:
            raise SecurityError(f"{self.prefix}{name}: {path} holds no certificate in PEM form", _HINT) from error
        begins, ends = certificates[0].not_valid_before_utc, certificates[0].not_valid_after_utc
        if ends < now:
            raise SecurityError(f"{self.prefix}{name}: the certificate in {path} ended on {ends:%Y-%m-%d}", _HINT)
        if begins > now:
            raise SecurityError(
                f"{self.prefix}{name}: the certificate in {path} begins only on {begins:%Y-%m-%d %H:%M} UTC",
                "check the clock of this machine",
            )
        return content

    def _key(self, path: Path, chain: bytes) -> bytes:
        """The file with the key of the first certificate of ``chain``."""
        from cryptography import x509
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        content = self._content("key", path)
        try:
            key = load_pem_private_key(content, password=None)
        except TypeError as error:
            raise SecurityError(f"{self.prefix}key: the key in {path} must not be encrypted") from error
        except (ValueError, UnsupportedAlgorithm) as error:
            raise SecurityError(f"{self.prefix}key: {path} holds no private key in PEM form", _HINT) from error
        if key.public_key() != x509.load_pem_x509_certificate(chain).public_key():
            raise SecurityError(
                f"{self.prefix}key: the key in {path} does not belong to the certificate in {self.cert}"
            )
        return content

    def _content(self, name: str, path: Path) -> bytes:
        try:
            with path.open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise SecurityError(f"{self.prefix}{name}: {path} cannot be read: {error.strerror}", _HINT) from error
        if len(content) > MAX_FILE_BYTES:
            raise SecurityError(f"{self.prefix}{name}: {path} is larger than {MAX_FILE_BYTES} bytes")
        return content

    def stamps(self) -> Stamps:
        """The files as they are now."""
        return tuple(_stamp(path) for path in (self.cert, self.key, self.ca) if path)


def hosts_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """The DNS names and IP addresses that a certificate is made out to, as far as it says so where clients look."""
    from cryptography import x509

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return (*names.get_values_for_type(x509.DNSName), *(str(ip) for ip in names.get_values_for_type(x509.IPAddress)))


def grpc_files(settings: GrpcSettings) -> TlsFiles:
    """The files of ``tls_cert``, ``tls_key`` and ``tls_ca``."""
    return TlsFiles(settings.tls_cert, settings.tls_key, settings.tls_ca)


def https_files(settings: FacadeSettings) -> TlsFiles:
    """The files of ``http_tls_cert`` and ``http_tls_key``."""
    return TlsFiles(settings.http_tls_cert, settings.http_tls_key, prefix="http_tls_")


class Watched(Generic[_T]):
    """What ``make`` makes of the files, and makes again when they change.

    New files that cannot be used are told in the log, and what was made before stays in use: a certificate may be
    replaced before its key is.

    Args:
        files: where the material lies.
        material: what they held. Raises what ``make`` raises for it.
    """

    def __init__(self, files: TlsFiles, material: Material, make: Callable[[Material], _T]) -> None:
        self._files = files
        self._make = make
        self._stamps = material.stamps
        self._made = make(material)

    def newest(self) -> _T:
        """What the files make now."""
        stamps = self._files.stamps()
        if stamps == self._stamps:
            return self._made
        self._stamps = stamps
        try:
            self._made = self._make(self._files.read())
        except (SecurityError, OSError) as error:
            _log.warning("the changed certificate or key is not used, the old ones stay: %s", error)
        else:
            _log.info("%s and %s have changed and are used from now on", self._files.cert, self._files.key)
        return self._made


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
