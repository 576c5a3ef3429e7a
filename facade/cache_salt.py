"""Who may share computed prompts with whom.

An answer that begins sooner because a stranger asked the same tells on them, so nobody shares beyond their tenant. A
key has no org above it yet: it is its own tenant.
"""

from __future__ import annotations

from hashlib import blake2b

from mantler.tenancy.store import KeyRecord


def cache_salt(key: KeyRecord, own: str | None) -> str:
    """The salt of a request: the tenant's, narrowed by the client's ``own`` one where it sent one.

    No ``own`` salt leads to another tenant's, whatever it is; the salt says nothing of either.
    """
    tenant = blake2b(key.id.encode(), digest_size=32, person=b"tenant")
    if own is None:
        return tenant.hexdigest()
    return blake2b(own.encode(), key=tenant.digest(), digest_size=32, person=b"client").hexdigest()
