"""What the commands that operate a mesh have in common: the way to its facade."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from mantler.cli.errors import CliError
from mantler.cli.options import GRPC_FIELDS, settings_options
from mantler.config import OperatorSettings
from mantler.errors import ErrorCode, MantlerError

if TYPE_CHECKING:
    from mantler.admin import AdminClient, NoFacadeError

Result = TypeVar("Result")

operator_options = settings_options(OperatorSettings, only=("grpc", *GRPC_FIELDS, "home"))
"""The options of a command that operates a mesh; the argument is ``flags``."""

_HINTS = {
    ErrorCode.INVALID_TOKEN: "the token is in operator-token of the facade's home; elsewhere MANTLER_OPERATOR_TOKEN "
    "holds it",
    ErrorCode.MACHINE_NOT_FOUND: "`mantler machines` lists them",
    ErrorCode.MACHINE_OFFLINE: "`mantler machines` shows which machines are online",
    ErrorCode.MODEL_NOT_FOUND: "`mantler mantles` shows what is deployed",
}


@asynccontextmanager
async def operating(settings: OperatorSettings) -> AsyncIterator[AdminClient]:
    """A client of the facade. Raises ``CliError`` where there is no token, and ``SecurityError``."""
    from mantler.admin import AdminClient
    from mantler.security.transport import Security

    async with AdminClient(settings.grpc, _token(settings), Security.load(settings)) as client:
        yield client


def run_operation(operation: Coroutine[Any, Any, Result]) -> Result:
    """The result of ``operation``, whose errors come with what to do about them."""
    from mantler.admin import NoFacadeError

    try:
        return asyncio.run(operation)
    except (MantlerError, NoFacadeError) as error:
        raise failure(error) from error


def failure(error: MantlerError | NoFacadeError) -> CliError:
    """``error`` as what a command says."""
    hint = _HINTS.get(error.code) if isinstance(error, MantlerError) else error.hint
    return CliError(error.message.rstrip("."), hint=hint)


def _token(settings: OperatorSettings) -> str:
    from mantler.tenancy.operator import FILE, read_operator_token

    token = settings.operator_token or read_operator_token(settings.home)
    if token is None:
        raise CliError(
            f"there is no operator's token: {settings.home / FILE} does not exist",
            hint="the first start of a facade makes it in its own home: name that with --home, or copy the token into "
            "MANTLER_OPERATOR_TOKEN",
        )
    return token
