"""From what ``Authorization`` says to the key's record, and what the key may use."""

from __future__ import annotations

import time

from facade.exchange import Exchange
from mantler.errors import ErrorCode, MantlerError
from mantler.tenancy.keys import is_well_formed
from mantler.tenancy.store import KeyRecord, KeyStore


async def authenticate(keys: KeyStore, authorization: str | None, exchange: Exchange) -> KeyRecord:
    """The record of the key in ``authorization``, the value of the header or metadata of this name.

    It is looked up on every request, so that revoking works on the next one. Raises INVALID_API_KEY, or
    STORE_UNAVAILABLE where the key cannot be checked.
    """
    scheme, _, key = (authorization or "").strip().partition(" ")
    key = key.strip()
    if scheme.lower() != "bearer" or not key:
        raise _refused("No API key was sent. Send one as 'Authorization: Bearer mk_live_…'.")
    record = await keys.find(key) if is_well_formed(key) else None
    if record is None:
        raise _refused("The API key is not valid.")
    exchange.key_id = record.id
    if record.revoked_unix_s is not None:
        raise _refused("The API key was revoked.")
    if record.expires_unix_s is not None and record.expires_unix_s <= time.time():
        raise _refused("The API key has expired.")
    return record


def require_model(key: KeyRecord, model: str) -> None:
    """Raises MODEL_NOT_ALLOWED if ``key`` may not use ``model``."""
    if not key.allows(model):
        # Said before it is known whether the model exists: the key's holder is not told.
        raise MantlerError(ErrorCode.MODEL_NOT_ALLOWED, "This API key may not use the model.", param="model")


def _refused(message: str) -> MantlerError:
    return MantlerError(ErrorCode.INVALID_API_KEY, message)
