"""Errors name a parameter as the client spelled it, where it has more than one name. Pure."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from mantler.errors import MantlerError


def respelled(error: MantlerError, spelling: Mapping[str, str]) -> MantlerError:
    """``error`` with its parameter renamed as ``spelling`` has it, or as it is."""
    if error.param is None or error.param not in spelling:
        return error
    spelled = spelling[error.param]
    message = error.message.replace(error.param, spelled, 1)
    return MantlerError(error.code, message, param=spelled, retry_after_s=error.retry_after_s)


@contextlib.contextmanager
def spelled_as(param: str, spelling: str) -> Iterator[None]:
    """Errors about ``param`` that the body raises name it ``spelling``."""
    try:
        yield
    except MantlerError as error:
        raise respelled(error, {param: spelling}) from None
