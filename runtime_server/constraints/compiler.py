"""Compiles the constraints of one model's requests."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar, TypeVarTuple

from llguidance import LLMatcher, LLTokenizer

from mantler.messages import Constraint
from runtime_server.constraints.grammar import complaint, error_param, grammar_text
from runtime_server.constraints.limits import CACHED_GRAMMARS, MAX_CACHED_CHARS, parser_limits
from runtime_server.constraints.matcher import Matcher
from runtime_server.constraints.outline import Outline
from runtime_server.constraints.trial import Trial
from runtime_server.constraints.vocabulary import vocabulary
from runtime_server.models.tokenizer import Tokenizer

Args = TypeVarTuple("Args")
Result = TypeVar("Result")


class Compiler:
    """From constraints to matchers, off the event loop. What was compiled lately is not compiled again.

    Args:
        tokenizer: of the model. What is derived from it is made at the first constraint.
        vocab_size: of the logits.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, *, name: str) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._trial = Trial()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"constraints {name}")
        self._vocabulary: LLTokenizer | None = None
        """Used in the thread only."""
        self._compiled: OrderedDict[Constraint | Outline, LLMatcher] = OrderedDict()
        """Used on the event loop only. The latest last."""
        self._compiling: dict[Constraint | Outline, asyncio.Task[LLMatcher]] = {}
        """So that requests that come together with the same constraint wait for one compilation."""

    async def matcher(self, constraint: Constraint | Outline, *, ends_early: bool) -> Matcher:
        """A matcher at the beginning of ``constraint``, with its first mask.

        Args:
            ends_early: see :class:`Matcher`.

        Raises:
            MantlerError: INVALID_PARAMETER where the constraint is invalid, not supported, too large, or nothing can
                match it; RUNTIME_UNAVAILABLE where too many wait to be compiled.
        """
        state = await self._known(constraint)
        return await self._in_thread(self._matcher, constraint, state, ends_early)

    async def check(self, constraint: Constraint) -> None:
        """Raises as :meth:`matcher` does where ``constraint`` cannot be compiled."""
        await self._known(constraint)

    async def close(self) -> None:
        """Ends the thread and the process that constraints are tried in."""
        tasks = list(self._compiling.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._thread.shutdown(wait=False, cancel_futures=True)
        await self._trial.close()

    async def _known(self, constraint: Constraint | Outline) -> LLMatcher:
        state = self._compiled.get(constraint)
        if state is not None:
            self._compiled.move_to_end(constraint)
            return state
        task = self._compiling.get(constraint)
        if task is None:
            task = self._compiling[constraint] = asyncio.create_task(self._compile(constraint))
            task.add_done_callback(partial(self._compiled_or_failed, constraint))
        # One that gives up does not take it from the others.
        return await asyncio.shield(task)

    def _compiled_or_failed(self, constraint: Constraint | Outline, task: asyncio.Task[LLMatcher]) -> None:
        del self._compiling[constraint]
        if not task.cancelled():
            # Looked at, also where everybody who asked has gone.
            task.exception()

    async def _compile(self, constraint: Constraint | Outline) -> LLMatcher:
        text = await self._in_thread(grammar_text, constraint)
        error = await self._trial.complaint(text)
        if error:
            raise complaint(constraint, error)
        state = await self._in_thread(self._state, text)
        if state.is_error():
            raise complaint(constraint, state.get_error())
        if len(text) <= MAX_CACHED_CHARS:
            self._compiled[constraint] = state
            if len(self._compiled) > CACHED_GRAMMARS:
                self._compiled.popitem(last=False)
        return state

    def _state(self, text: str) -> LLMatcher:
        if self._vocabulary is None:
            self._vocabulary = vocabulary(self._tokenizer)
        return LLMatcher(self._vocabulary, text, log_level=0, limits=parser_limits())

    def _matcher(self, constraint: Constraint | Outline, state: LLMatcher, ends_early: bool) -> Matcher:
        matcher = Matcher(
            state.deep_copy(),
            vocab_size=self._vocab_size,
            table_size=self._tokenizer.vocab_size,
            end_ids=self._tokenizer.eos_ids,
            ends_early=ends_early,
            param=error_param(constraint),
        )
        matcher.start()
        return matcher

    async def _in_thread(self, function: Callable[[*Args], Result], *args: *Args) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)
