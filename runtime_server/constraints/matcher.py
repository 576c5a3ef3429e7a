"""Follows one output through its grammar and says which tokens may come next."""

from __future__ import annotations

import logging
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from mantler.errors import MantlerError, internal, invalid
from runtime_server.constraints.limits import MASK_TIMEOUT_S

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Mask:
    """The tokens that may come next."""

    forbidden: NDArray[np.bool_]
    """``[vocab_size]``; at least one entry is False."""

    def leaves_none(self, banned: frozenset[int]) -> bool:
        """Whether nothing is left where ``banned`` must not be drawn either."""
        ids = list(banned)
        allowed = self.forbidden.size - int(np.count_nonzero(self.forbidden))
        return allowed == len(ids) - int(np.count_nonzero(self.forbidden[ids]))


class Matcher:
    """The state of one choice's output. Outlives preemption: it depends on the tokens only.

    Used by one thread at a time. The mask of the next token is made ahead in another one, from :meth:`advance` until
    :meth:`mask`, and nothing else is called in between.

    Args:
        state: at the beginning of the grammar; taken over.
        vocab_size: of the logits.
        table_size: tokens of the tokenizer, at least as many.
        end_ids: the model's end-of-sequence tokens, which the grammar allows where it may end.
        ends_early: whether such a token may be drawn while other tokens are allowed as well.
        param: the request's field that errors name.
    """

    def __init__(
        self,
        state: LLMatcher,
        *,
        vocab_size: int,
        table_size: int,
        end_ids: frozenset[int],
        ends_early: bool,
        param: str,
    ) -> None:
        self._state = state
        self._vocab_size = vocab_size
        self._end_ids = end_ids
        self._ends_early = ends_early
        self._param = param
        self._buffer = np.zeros((table_size + 31) // 32, np.int32)
        self._mask: Future[Mask] = Future()
        self.complete = False
        """Whether the grammar is satisfied and nothing may follow."""

    def start(self) -> None:
        """Makes the mask of the first token. Raises ``MantlerError`` where no output can match."""
        self._mask.set_result(self._next_mask())

    def mask(self) -> Mask:
        """The mask of the next token, once it is there. Raises ``MantlerError`` where it would cost too much."""
        try:
            return self._mask.result(MASK_TIMEOUT_S)
        except TimeoutError:
            # The state is in use elsewhere and must not be asked.
            raise _limit_reached(self._param) from None

    def advance(self, token_id: int, executor: Executor) -> None:
        """Takes the token that was drawn and starts with the next mask, unless the output is complete."""
        if not self._state.consume_token(token_id):
            # The mask has let the token through, so what fails here is a limit.
            self._mask = Future()
            self._mask.set_exception(self._failure())
        elif self._state.is_stopped():
            self.complete = True
        else:
            self._mask = executor.submit(self._next_mask)

    def _next_mask(self) -> Mask:
        state, buffer = self._state, self._buffer
        state.unsafe_compute_mask_ptr(buffer.ctypes.data, buffer.nbytes)
        if state.is_error():
            raise self._failure()
        bits = np.unpackbits(buffer.view(np.uint8), count=self._vocab_size, bitorder="little")
        forbidden = bits == 0
        if not self._ends_early:
            ends = list(self._end_ids)
            kept = forbidden[ends]
            forbidden[ends] = True
            if forbidden.all():
                forbidden[ends] = kept
        if forbidden.all():
            raise invalid(self._param, "no token of this model's vocabulary can follow.")
        return Mask(forbidden)

    def _failure(self) -> MantlerError:
        text = self._state.get_error()
        if text.startswith("panic"):
            logger.error("a grammar broke its parser: %s", text.partition("\n")[0])
            return internal()
        if "NoExtension" in text:
            return invalid(self._param, "no output can match it.")
        return _limit_reached(self._param)


def _limit_reached(param: str) -> MantlerError:
    return invalid(param, "matching the output against it takes more time or memory than is allowed.")
