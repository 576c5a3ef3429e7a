"""The step loop: one thread that schedules, runs, samples and publishes.

The event loop's side submits and cancels sequences; the engine's thread calls back through
``loop.call_soon_threadsafe``, once per step. The lock guards the scheduler and is held for microseconds, never while
the backend runs.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Protocol

from mantler.errors import ErrorCode, MantlerError, internal
from mantler.messages import EngineProfile, FinishReason
from runtime_server.backends.base import Backend, Flight
from runtime_server.constraints.matcher import Matcher
from runtime_server.engine.draw import draw
from runtime_server.engine.logprobs import Ranking
from runtime_server.engine.profile import StepCounters
from runtime_server.engine.sampler import SamplingRow
from runtime_server.engine.scheduler import Sampled, Scheduler, Step
from runtime_server.engine.sequence import Sequence

logger = logging.getLogger(__name__)

IDLE_POLL_S = 0.02
MASK_THREADS = 1
"""Threads that make the masks of constrained outputs while the backend runs. They start with the first one."""


class Sink(Protocol):
    """Where a sequence's tokens go. Called on the event loop."""

    def admitted(self) -> None:
        """The sequence runs, with as many cached tokens as it says."""
        ...

    def token(self, token_id: int, finish: FinishReason | None, ranking: Ranking | None) -> None:
        """The next token; the last one where ``finish`` is set. ``ranking`` where log probabilities were asked for."""
        ...

    def failed(self, error: MantlerError) -> None:
        """No further token will come."""
        ...


@dataclass(frozen=True, slots=True)
class _Launched:
    """A step that runs."""

    step: Step
    flight: Flight
    sampled: list[Sequence]
    """Those that get a token, in the order of the output's rows."""
    schedule_ns: int
    run_ns: int
    """When its schedule began, and when it was launched."""


class Engine:
    """Runs one model's sequences on one backend.

    Args:
        backend: used by the engine's thread only, and closed by it.
        scheduler: used under the engine's lock only.
        loop: the event loop that sinks are called on.
        on_failure: called on the event loop once, when a step raised and the engine has stopped.
    """

    def __init__(
        self,
        backend: Backend,
        scheduler: Scheduler,
        *,
        name: str,
        loop: asyncio.AbstractEventLoop,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self._backend = backend
        self._scheduler = scheduler
        self._name = name
        self._loop = loop
        self._on_failure = on_failure
        self._masks = ThreadPoolExecutor(MASK_THREADS, thread_name_prefix=f"masks {name}")
        self._wake = threading.Condition()
        self._counters = StepCounters()
        self._output_ns = 0
        """When the step before had its output."""
        self._sinks: dict[int, Sink] = {}
        self._stopping = False
        self._failed = False
        self._step_started_s: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"engine {name}", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def submit(self, choices: Items[tuple[Sequence, Sink]]) -> None:
        """Queues the choices of one request, all or none.

        Raises ``MantlerError`` where the queue is full or the engine has stopped.
        """
        with self._wake:
            if self._stopping or self._failed:
                raise unavailable(self._name)
            self._scheduler.add(*(sequence for sequence, _ in choices))
            self._sinks.update((id(sequence), sink) for sequence, sink in choices)
            self._wake.notify()

    def cancel(self, sequence: Sequence) -> None:
        """Frees the sequence's place, at the latest before the next step. Its sink is not called any more."""
        with self._wake:
            if self._sinks.pop(id(sequence), None) is not None:
                self._scheduler.cancel(sequence)
                self._wake.notify()

    @property
    def running(self) -> int:
        """Sequences that run."""
        return self._scheduler.running

    @property
    def waiting(self) -> int:
        """Sequences that wait."""
        return self._scheduler.waiting

    @property
    def held_tokens(self) -> int:
        """Tokens of the sequences that run or wait."""
        with self._wake:
            return self._scheduler.held_tokens

    @property
    def failed(self) -> bool:
        """Whether a step raised. The engine has stopped then."""
        return self._failed

    def profile(self) -> EngineProfile:
        """What the steps so far did, and where their time went."""
        with self._wake:
            scheduler = self._scheduler
            return self._counters.profile(
                cached_prompt_tokens=scheduler.cached_tokens, preemptions=scheduler.preemptions
            )

    def step_age_s(self) -> float:
        """How long the step that runs now has been running; 0 between steps."""
        started = self._step_started_s
        return 0.0 if started is None else time.monotonic() - started

    async def idle(self) -> None:
        """Returns once nothing waits and nothing runs."""
        while self.running or self.waiting:  # noqa: ASYNC110 - the engine's thread has no business with this rare wait
            await asyncio.sleep(IDLE_POLL_S)

    async def close(self) -> None:
        """Stops after the running step, fails what is left and frees the backend."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        try:
            while (launched := self._launch_next()) is not None:
                while launched is not None:
                    ahead = self._launch_ahead(launched)
                    self._finish(launched)
                    launched = ahead
            self._fail_all(unavailable(self._name))
        except Exception:
            # Whatever broke, the clients of this engine must hear of it and the process must know.
            logger.exception("engine %s stopped", self._name)
            self._failed = True
            self._fail_all(internal())
            self._loop.call_soon_threadsafe(self._on_failure)
        finally:
            self._step_started_s = None
            self._masks.shutdown(cancel_futures=True)
            self._backend.close()

    def _launch_next(self) -> _Launched | None:
        """Waits for something to do and launches it; ``None`` where the engine stops."""
        with self._wake:
            while True:
                if self._stopping:
                    return None
                schedule_ns = perf_counter_ns()
                step = self._scheduler.schedule()
                if step.chunks:
                    self._announce(step)
                    break
                self._wake.wait()
        return self._launch(step, schedule_ns)

    def _launch(self, step: Step, schedule_ns: int) -> _Launched:
        self._step_started_s = time.monotonic()
        run_ns = perf_counter_ns()
        sampled = [s for s, chunk in zip(step.sequences, step.chunks, strict=True) if chunk.wants_logits]
        self._begin_masks(sampled)
        return _Launched(step, self._backend.launch(step.chunks), sampled, schedule_ns, run_ns)

    def _launch_ahead(self, launched: _Launched) -> _Launched | None:
        """Launches the step after ``launched`` before anybody looked at its tokens, where that is possible."""
        if not self._backend.ahead or not all(sequence.takes_likeliest for sequence in launched.sampled):
            return None
        schedule_ns = perf_counter_ns()
        with self._wake:
            step = None if self._stopping else self._scheduler.schedule_ahead(launched.step)
        return None if step is None else self._launch(step, schedule_ns)

    def _finish(self, launched: _Launched) -> None:
        self._step_started_s = time.monotonic()
        step, sampled = launched.step, launched.sampled
        output = launched.flight.output()
        sample_ns = perf_counter_ns()
        tokens, ranked = draw(output, [self._sampling_row(sequence) for sequence in sampled])
        for sequence, token_id in zip(sampled, tokens, strict=True):
            sequence.follow(token_id)
        publish_ns = perf_counter_ns()
        self._step_started_s = None
        with self._wake:
            self._publish(self._scheduler.commit(step, tokens, ranked))
            times_ns = (*self._began_ns(launched), sample_ns, publish_ns, perf_counter_ns())
            self._counters.add(len(step.chunks), step.prompt_tokens, len(tokens), times_ns)
            self._output_ns = sample_ns

    def _began_ns(self, launched: _Launched) -> tuple[int, int]:
        """When a step's schedule and run began. The device ran the step before it until that had its output."""
        run_ns = max(launched.run_ns, self._output_ns)
        return run_ns - (launched.run_ns - launched.schedule_ns), run_ns

    def _begin_masks(self, sequences: Items[Sequence]) -> None:
        """Has the masks of a step's rows made beside its run.

        Not sooner: making them needs the interpreter, which publishing the step before needs too.
        """
        matchers = [sequence.matcher for sequence in sequences if sequence.matcher is not None]
        for matcher in matchers:
            matcher.expect()
        if matchers:
            self._masks.submit(_make_masks, matchers)

    def _sampling_row(self, sequence: Sequence) -> SamplingRow:
        """What decides the sequence's next token. Where its grammar gives up, the sequence fails, and nobody else."""
        try:
            return sequence.sampling_row()
        except MantlerError as error:
            with self._wake:
                sink = self._sinks.pop(id(sequence), None)
                self._scheduler.cancel(sequence)
            if sink is not None:
                self._loop.call_soon_threadsafe(_fail, [sink], error)
            # The step goes on with a token that nobody gets.
            sequence.matcher = None
            return sequence.sampling_row()

    def _announce(self, step: Step) -> None:
        sinks = [self._sinks[id(sequence)] for sequence in step.admitted]
        if sinks:
            self._loop.call_soon_threadsafe(_announce, sinks)

    def _publish(self, sampled: list[Sampled]) -> None:
        """Hands a step's tokens over in one call. Under the lock, so that a cancelled sequence hears nothing."""
        batch = []
        for item in sampled:
            key = id(item.sequence)
            sink = self._sinks[key] if item.finish is None else self._sinks.pop(key)
            batch.append((sink, item))
        if batch:
            self._loop.call_soon_threadsafe(_deliver, batch)

    def _fail_all(self, error: MantlerError) -> None:
        with self._wake:
            self._stopping = True
            self._scheduler.drop_all()
            sinks = list(self._sinks.values())
            self._sinks.clear()
        if sinks:
            self._loop.call_soon_threadsafe(_fail, sinks, error)


def unavailable(name: str) -> MantlerError:
    """The 503 of a model that is not taking requests."""
    return MantlerError(
        ErrorCode.RUNTIME_UNAVAILABLE, f"The model {name} is not taking requests right now.", retry_after_s=1.0
    )


def _make_masks(matchers: list[Matcher]) -> None:
    for matcher in matchers:
        matcher.make()


def _announce(sinks: list[Sink]) -> None:
    for sink in sinks:
        sink.admitted()


def _deliver(batch: list[tuple[Sink, Sampled]]) -> None:
    for sink, item in batch:
        sink.token(item.token_id, item.finish, item.ranking)


def _fail(sinks: list[Sink], error: MantlerError) -> None:
    for sink in sinks:
        sink.failed(error)
