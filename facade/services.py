"""What the handlers work with."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

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


SERVICES = web.AppKey("services", Services)
