"""The models that a key may use now, and what a client is told of one that is not among them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator

from mantler.errors import ErrorCode, MantlerError
from mantler.messages import ModelInfo
from mantler.routing.client import MeshClient
from mantler.tenancy.store import KeyRecord

LOOKUP_TIMEOUT_S = 2.0
"""A look at the store of a healthy machine takes milliseconds."""
MAX_NAMED = 5
"""Models that an error names."""
MAX_NAME_CHARS = 80


async def usable_models(client: MeshClient, key: KeyRecord) -> list[ModelInfo]:
    """The models that answer requests and that ``key`` may use. Raises MACHINE_OFFLINE for a runtime that is silent."""
    with _silence_is_offline():
        models = await client.list_models(key.machines)
    return [model for model in models if key.allows(model.id)]


async def usable_model(client: MeshClient, key: KeyRecord, name: str) -> ModelInfo:
    """One of them. Raises MODEL_NOT_FOUND, MODEL_NOT_ALLOWED, and MACHINE_OFFLINE for a runtime that is silent."""
    async with explaining(client, key, name):
        with _silence_is_offline():
            return await client.get_model(name, key.machines)


async def not_found(client: MeshClient, key: KeyRecord, name: str) -> MantlerError:
    """MODEL_NOT_FOUND for ``name``, with what ``key`` may use instead, as far as the runtime tells."""
    shown = repr(name if len(name) <= MAX_NAME_CHARS else name[: MAX_NAME_CHARS - 1] + "…")
    message = f"The model {shown} is not served here."
    with contextlib.suppress(MantlerError):  # it was asked for what it cannot give; the answer is 404 all the same
        usable = [model.id for model in await usable_models(client, key)]
        rest = f" and {len(usable) - MAX_NAMED} more" if len(usable) > MAX_NAMED else ""
        named = f"This API key may use {', '.join(usable[:MAX_NAMED])}{rest}."
        message += f" {named if usable else 'No model that this API key may use is served now.'}"
    return MantlerError(ErrorCode.MODEL_NOT_FOUND, message, param="model")


@contextlib.asynccontextmanager
async def explaining(client: MeshClient, key: KeyRecord, name: str) -> AsyncIterator[None]:
    """Where the body finds no model of this name, the error says what ``key`` may use instead."""
    try:
        yield
    except MantlerError as error:
        if error.code is not ErrorCode.MODEL_NOT_FOUND:
            raise
        raise await not_found(client, key, name) from error


@contextlib.contextmanager
def _silence_is_offline() -> Iterator[None]:
    try:
        yield
    except MantlerError as error:
        if error.code is not ErrorCode.DEADLINE_EXCEEDED:
            raise
        raise MantlerError(
            ErrorCode.MACHINE_OFFLINE, "The machine is offline or its runtime does not answer.", retry_after_s=1.0
        ) from error
