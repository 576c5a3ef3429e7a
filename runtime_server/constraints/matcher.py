"""Follows one output through its grammar and says which tokens may come next."""

from __future__ import annotations

import logging
from concurrent.futures import Future

import numpy as np
from llguidance import LLMatcher

from mantler.errors import MantlerError, internal, invalid
from runtime_server.constraints.limits import MASK_TIMEOUT_S
from runtime_server.constraints.mask import Mask

logger = logging.getLogger(__name__)


class Matcher:
    """The state of one choice's output. Outlives preemption: it depends on the tokens only.

    A step that needs a mask calls :meth:`expect`, has another thread call :meth:`make` while the model runs, and takes
    it with :meth:`mask`; nothing else is called in between.

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
        words = (table_size + 31) // 32
        self._allowed = np.zeros(4 * words, np.uint8)
        """One bit per token, the lowest first."""
        self._current = False
        """Whether ``_allowed`` is that of the next token."""
        self._mask = Mask(self._allowed)
        self._made: Future[Mask] = Future()
        self.complete = False
        """Whether the grammar is satisfied and nothing may follow."""

    def start(self) -> None:
        """Finds what may come first. Raises ``MantlerError`` where no output can match."""
        self._find_allowed()

    def expect(self) -> None:
        """Announces that :meth:`make` will be called, before :meth:`mask` is."""
        self._made = Future()

    def make(self) -> None:
        """Makes the mask of the next token. Never raises: what fails is raised by :meth:`mask`."""
        try:
            if not self._current:
                self._find_allowed()
            self._made.set_result(self._mask)
        except BaseException as error:  # a panic of the parser is no Exception
            self._made.set_exception(error)

    def mask(self) -> Mask:
        """The mask of the next token, once it is there; until the next :meth:`make`.

        Raises ``MantlerError`` where it would cost too much.
        """
        try:
            return self._made.result(MASK_TIMEOUT_S)
        except TimeoutError:
            # The state is in use elsewhere and must not be asked.
            raise _limit_reached(self._param) from None

    def advance(self, token_id: int) -> None:
        """Takes the token that was drawn."""
        self._current = False
        # The mask has let the token through, so what fails here is a limit. The next mask says so.
        if self._state.consume_token(token_id):
            self.complete = self._state.is_stopped()

    def _find_allowed(self) -> None:
        state, allowed = self._state, self._allowed
        if not state.is_error():
            state.unsafe_compute_mask_ptr(allowed.ctypes.data, allowed.nbytes)
        if state.is_error():
            raise self._failure()
        # The logits may have fewer rows than the tokenizer has tokens, and no more.
        bytes_used, rest = divmod(self._vocab_size, 8)
        if rest:
            allowed[bytes_used] &= (1 << rest) - 1
        allowed[bytes_used + bool(rest) :] = 0
        if not self._ends_early:
            self._forbid_ends()
        if not allowed.any():
            raise invalid(self._param, "no token of this model's vocabulary can follow.")
        self._current = True

    def _forbid_ends(self) -> None:
        """Takes the ends out, unless nothing else may follow."""
        others = self._allowed.copy()
        for token_id in self._end_ids:
            others[token_id // 8] &= ~np.uint8(1 << token_id % 8)
        if others.any():
            self._allowed[:] = others

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
