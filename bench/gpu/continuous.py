"""The continuous batching of Hugging Face transformers, asked with token ids; times as it records them itself."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from bench.gpu.figures import LONG, DecodeFigures, MixedFigures, UnmeasuredError, decode_figures, mixed_figures
from bench.gpu.load import LONG_NEW_TOKENS, WARM_TOKENS, Load, long_prompts, prompts
from bench.stream import Stream

PAGE_TOKENS = 256
STEP_TOKENS = 8192
"""Both are its defaults. A step computes so many tokens at most."""
POLL_S = 1.0
STOP_S = 30.0
ANSWER_S = 240.0
"""No answer takes that long."""


class ContinuousBatching:
    """Batching that runs. :func:`running` makes it.

    Args:
        manager: of transformers, started, with requests for nobody else.
    """

    def __init__(self, manager: Any, vocab_size: int, load: Load) -> None:
        self._manager = manager
        self._vocab_size = vocab_size
        self._load = load
        self._finished: dict[str, Any] = {}

    def decode(self, batch: int) -> DecodeFigures:
        """The figures of ``batch`` streams. Raises :class:`~bench.gpu.figures.UnmeasuredError`.

        They decode for longer than is asked for, since they begin one after the other.
        """
        load = self._load
        begun = prompts(self._vocab_size, batch, load.context, f"decode {batch}")
        self._answered(begun, WARM_TOKENS)
        new_tokens = load.new_tokens + stagger(load, batch)
        return decode_figures(self._answered([[*prompt, 1] for prompt in begun], new_tokens), load.context + 1)

    def mixed(self) -> MixedFigures:
        """The figures of the mixed load. Raises :class:`~bench.gpu.figures.UnmeasuredError`."""
        load = self._load
        begun = prompts(self._vocab_size, load.streams, load.context, "mixed")
        others = self._ask(begun, load.patience + stagger(load, load.streams))
        # The first one was to warm up; since it comes last, all the others decode when it is answered.
        asked = [self._answered([long], LONG_NEW_TOKENS, LONG) for long in long_prompts(self._vocab_size, load)]
        return mixed_figures(self._streams(others) + [stream for [stream] in asked[1:]], load.long_tokens)

    def _ask(self, prompts: Sequence[list[int]], new_tokens: int) -> dict[str, float]:
        """The ids of the requests, and when they were made."""
        asked = {}
        for prompt in prompts:
            now = time.perf_counter()
            asked[self._manager.add_request(prompt, max_new_tokens=new_tokens, record_timestamps=True)] = now
        return asked

    def _answered(self, prompts: Sequence[list[int]], new_tokens: int, label: str = "") -> list[Stream]:
        return self._streams(self._ask(prompts, new_tokens), label)

    def _streams(self, asked: dict[str, float], label: str = "") -> list[Stream]:
        """Waits for the answers. Raises :class:`~bench.gpu.figures.UnmeasuredError` where one does not come."""
        deadline = time.monotonic() + ANSWER_S
        while not asked.keys() <= self._finished.keys():
            result = self._manager.get_result(timeout=POLL_S)
            if result is not None and result.is_finished():
                self._finished[result.request_id] = result
            elif result is None and not self._manager.is_running():
                raise UnmeasuredError("transformers stopped; the log says why")
            elif time.monotonic() > deadline:
                raise UnmeasuredError(f"no answer within {ANSWER_S:g} s")
        return [self._stream(self._finished.pop(name), started, label) for name, started in asked.items()]

    @staticmethod
    def _stream(result: Any, started: float, label: str) -> Stream:
        return Stream(started, label, list(result.timestamps or ()), error=result.error or "")


@contextmanager
def running(model: Any, load: Load) -> Iterator[ContinuousBatching]:
    """Batches the requests to ``model`` for as long as the block lasts, with a cache that holds the largest load.

    Args:
        model: of transformers, on its device, in evaluation mode.
    """
    from transformers import ContinuousBatchingConfig

    pages = -(-(load.longest + stagger(load, load.most_streams)) // PAGE_TOKENS) + 1
    config = ContinuousBatchingConfig(
        page_size=PAGE_TOKENS,
        num_blocks=load.most_streams * pages,
        max_batch_tokens=STEP_TOKENS,
        max_requests_per_batch=load.most_streams,
    )
    with model.continuous_batching_context_manager(timeout=STOP_S, continuous_batching_config=config) as manager:
        yield ContinuousBatching(manager, model.config.vocab_size, load)


def stagger(load: Load, streams: int) -> int:
    """Steps between the first and the last of ``streams`` beginning to decode."""
    return -(-streams * (load.context + 1) // (STEP_TOKENS - streams)) + 1
