"""What ``mantler doctor`` looks at in the files of TLS, and in what stands between two ends of a connection."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from mantler.cli.checks import Finding, Status
from mantler.security.errors import SecurityError
from mantler.security.files import Material, TlsFiles

ENDS_SOON = timedelta(days=30)
_RENEW = "`mantler certs issue NAME --host HOST --force` makes another one"


def tls(check: str, files: TlsFiles, now: datetime | None = None) -> Iterable[Finding]:
    """Whether the files of the settings can be used, and how long; nothing where there are none."""
    now = now or datetime.now(UTC)
    if not files:
        return
    try:
        material = files.read(now)
    except SecurityError as error:
        yield Finding(check, Status.FAIL, error.message, error.hint)
        return
    if material.chain is not None:
        yield _age(check, f"the certificate in {files.cert}", material.chain, now, _RENEW)
    if material.authorities is not None:
        hint = "`mantler certs init --force` makes another one; then every certificate is issued anew"
        yield _age(check, f"the authority in {files.ca}", material.authorities, now, hint)
    yield from _key_is_open(check, files)
    yield from _stranger(check, files, material)


def unanswered(address: str, trouble: str, *, encrypts: bool) -> Finding:
    """What gRPC says of a server at ``address`` that does not answer as it should."""
    hint = (
        "both sides need certificates of one tls_ca, and the server's must name the host of this address"
        if encrypts
        else "if it serves TLS, name its authority with tls_ca, and tls_cert and tls_key where it asks for them"
    )
    return Finding("runtime", Status.FAIL, f"{address} does not answer: {trouble}", hint)


def _age(check: str, what: str, pem: bytes, now: datetime, hint: str) -> Finding:
    from cryptography import x509

    ends = x509.load_pem_x509_certificate(pem).not_valid_after_utc
    detail = f"{what} is good until {ends:%Y-%m-%d}"
    if ends - now < ENDS_SOON:
        return Finding(check, Status.WARN, f"{detail}, {(ends - now).days} more days", hint)
    return Finding(check, Status.OK, detail)


def _key_is_open(check: str, files: TlsFiles) -> Iterable[Finding]:
    if files.key is not None and files.key.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        detail = f"other users of this machine may read {files.key}"
        yield Finding(check, Status.WARN, detail, f"chmod 600 {files.key}")


def _stranger(check: str, files: TlsFiles, material: Material) -> Iterable[Finding]:
    """A certificate that those who have the same authority refuse."""
    from cryptography import x509

    if material.chain is None or material.authorities is None:
        return
    known = x509.load_pem_x509_certificates(material.authorities)
    # What is between the certificate and its authority may stand below it.
    issuers = {certificate.issuer for certificate in x509.load_pem_x509_certificates(material.chain)}
    if not issuers & {certificate.subject for certificate in known}:
        detail = f"the certificate in {files.cert} does not come from the authority in {files.ca}"
        yield Finding(
            check, Status.WARN, detail, "others with the same tls_ca refuse it; issue both from one authority"
        )
