"""Where exceptions become gRPC statuses."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from mantler.errors import MantlerError, internal
from mantler.grpc_errors import abort

logger = logging.getLogger(__name__)


@asynccontextmanager
async def border(context: grpc.aio.ServicerContext[Any, Any], what: str) -> AsyncIterator[None]:
    """Ends the RPC with the status of whatever leaves the block.

    Our errors keep their row of the table; anything else is a bug: it is logged with ``what`` and the client learns
    nothing of it. Cancellation and an abort that has happened already pass through.
    """
    try:
        yield
    except MantlerError as error:
        await abort(context, error)
    except grpc.aio.AbortError:
        raise
    except Exception:
        logger.exception("%s failed", what)
        await abort(context, internal())
