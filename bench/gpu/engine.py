"""Mantler's engine without a server: a stored model on a device.

It is asked with token ids; times are taken on the engine's thread, as tokens are drawn.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from collections.abc import Sequence as Items
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from bench.gpu.limit import Traffic, stored_traffic
from bench.stream import Stream
from mantler.config import RuntimeSettings
from mantler.errors import MantlerError
from mantler.messages import FinishReason, SamplingParams
from runtime_server.backends.base import Backend
from runtime_server.backends.choice import load_backend, place, stored_footprint
from runtime_server.deployed import start_engine
from runtime_server.engine.engine import Engine
from runtime_server.engine.logprobs import Ranking
from runtime_server.engine.scheduler import GROWTH_BLOCKS
from runtime_server.engine.sequence import Sequence
from runtime_server.models.errors import PullError
from runtime_server.models.manifest import Manifest
from runtime_server.models.store import ModelStore

GREEDY = SamplingParams(temperature=0)


@runtime_checkable
class TellsExposure(Protocol):
    """A backend whose steps run beside the processor's work, and which knows what of that they had to wait for."""

    exposed_ns: int
    """Since the model was loaded."""


class TimedTokens(Sequence):
    """A sequence that writes down when it gets its tokens.

    It gets them on the engine's thread, as they are drawn. The event loop may hear of several at once.
    """

    def __init__(self, prompt: Items[int], new_tokens: int) -> None:
        super().__init__(prompt, GREEDY, seed=0, max_tokens=new_tokens)
        self.times: list[float] = []

    def append(self, token_id: int) -> FinishReason | None:
        """See :meth:`runtime_server.engine.sequence.Sequence.append`."""
        self.times.append(time.perf_counter())
        return super().append(token_id)


class Answer:
    """A :class:`~runtime_server.engine.engine.Sink` that knows when its sequence has begun and when it is done."""

    def __init__(self, prompt: Items[int], new_tokens: int, label: str) -> None:
        self.sequence = TimedTokens(prompt, new_tokens)
        self.first = asyncio.Event()
        self.done = asyncio.Event()
        self._label = label
        self._error = ""
        self._started = time.perf_counter()

    @property
    def stream(self) -> Stream:
        """What came so far."""
        return Stream(self._started, self._label, list(self.sequence.times), error=self._error)

    def admitted(self) -> None:
        """Nothing is told of it."""

    def token(self, token_id: int, finish: FinishReason | None, ranking: Ranking | None) -> None:
        """See :class:`~runtime_server.engine.engine.Sink`."""
        self.first.set()
        if finish is not None:
            self.done.set()

    def failed(self, error: MantlerError) -> None:
        """See :class:`~runtime_server.engine.engine.Sink`."""
        self._error = str(error)
        self.first.set()
        self.done.set()


@dataclass(frozen=True, slots=True)
class HostWork:
    """What the processor did between the device's steps, since the model was loaded."""

    steps: int
    exposed_s: float

    def per_step_ms(self, before: HostWork) -> float:
        """Of the steps since ``before``."""
        return 1000 * (self.exposed_s - before.exposed_s) / max(1, self.steps - before.steps)


class LoadedModel:
    """A model that runs. :func:`loaded` makes it."""

    def __init__(self, manifest: Manifest, backend: Backend, engine: Engine, traffic: Traffic) -> None:
        self.vocab_size = manifest.config.vocab_size
        self.traffic = traffic
        self._backend = backend
        self._engine = engine

    def ask(self, prompts: Items[Items[int]], new_tokens: int, label: str = "") -> list[Answer]:
        """Asks for exactly ``new_tokens`` greedy tokens after each prompt, all in the same step.

        Raises ``MantlerError`` where the queue is full or the engine has stopped.
        """
        answers = [Answer(prompt, new_tokens, label) for prompt in prompts]
        self._engine.submit([(answer.sequence, answer) for answer in answers])
        return answers

    async def answered(self, prompts: Items[Items[int]], new_tokens: int, label: str = "") -> list[Stream]:
        """The same, waited for."""
        answers = self.ask(prompts, new_tokens, label)
        for answer in answers:
            await answer.done.wait()
        return [answer.stream for answer in answers]

    async def dismiss(self, answers: Items[Answer]) -> None:
        """Takes back what was asked, and waits until nothing runs."""
        for answer in answers:
            self._engine.cancel(answer.sequence)
        await self._engine.idle()

    def holds(self, streams: int, tokens: int) -> bool:
        """Whether the cache takes ``streams`` of ``tokens`` at once, without one having to wait for another."""
        blocks = -(-tokens // self._backend.block_tokens) + GROWTH_BLOCKS
        return streams * blocks <= self._backend.blocks

    def host_work(self) -> HostWork:
        """All of it so far. Where the device waits while the processor works, it is all that the processor did."""
        profile = self._engine.profile().steps
        steps = sum(part.steps for part in profile)
        if isinstance(self._backend, TellsExposure):
            return HostWork(steps, self._backend.exposed_ns / 1e9)
        return HostWork(steps, sum(part.total_s - part.run_s for part in profile))


@asynccontextmanager
async def loaded(model_id: str, settings: RuntimeSettings) -> AsyncIterator[LoadedModel]:
    """A stored model on the device of ``settings``, whose memory is free again after the block.

    Raises: what ``place`` and ``load_backend`` of :mod:`runtime_server.backends.choice` raise, ``PullError`` where
    the model is not stored.
    """
    store = ModelStore(settings.models_dir)
    manifest = store.get(model_id)
    if manifest is None:
        raise PullError(f"{model_id} is not stored.")
    placement = place(manifest, settings)
    sizes = stored_footprint(placement.device.kind, manifest, settings)
    traffic = stored_traffic(manifest.config, manifest.quantization, manifest.weight_bytes, sizes.kv_bytes_per_token)
    backend = load_backend(placement, manifest, store.path(model_id), settings)
    engine = start_engine(backend, settings, name=model_id)
    try:
        yield LoadedModel(manifest, backend, engine, traffic)
    finally:
        await engine.close()
