"""Certificates for tests: made by ``mantler certs``' own code, for a moment that the test chooses."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from mantler.config import GrpcSettings
from mantler.security.authority import Issued, issue, make_authority
from mantler.security.transport import Security

LONG_AGO = datetime.now(UTC) - timedelta(days=400)
"""What was issued then has expired; its authority has not."""


class Authority:
    """One in ``folder``, which is made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.certificate = make_authority(folder, now=LONG_AGO).certificate

    def issue(self, name: str, hosts: Sequence[str] = ("127.0.0.1",), *, now: datetime | None = None) -> Issued:
        """A certificate, in place of the one of that name."""
        return issue(self.folder, name, hosts, force=True, now=now)

    def settings(self, name: str, *, shows: bool = True, asks: bool = True) -> dict[str, Path]:
        """The settings of a process that shows a certificate of its own, and asks others for theirs."""
        issued = self.issue(name)
        assert issued.key is not None
        shown = {"tls_cert": issued.certificate, "tls_key": issued.key} if shows else {}
        return {**shown, **({"tls_ca": self.certificate} if asks else {})}

    def security(self, name: str, *, shows: bool = True, asks: bool = True) -> Security:
        """The same, loaded."""
        settings = self.settings(name, shows=shows, asks=asks)
        return Security.load(GrpcSettings.model_validate({"home": self.folder, **settings}))
