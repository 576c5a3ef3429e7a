"""What the handlers work with."""

from __future__ import annotations

from dataclasses import dataclass

from facade.admission import Admission
from facade.limits import Limiters
from mantler.config import FacadeSettings
from mantler.routing.client import MeshClient
from mantler.tenancy.store import KeyStore


@dataclass(frozen=True, slots=True)
class Services:
    """One of each, for the life of the application."""

    settings: FacadeSettings
    client: MeshClient
    keys: KeyStore
    limiters: Limiters
    admission: Admission

    def limit_s(self, asked_s: float | None) -> float:
        """How long a request may take whose client gives it ``asked_s``."""
        longest_s = self.settings.request_timeout_s
        return longest_s if asked_s is None else min(asked_s, longest_s)
