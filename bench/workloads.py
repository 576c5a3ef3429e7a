"""The workloads: which requests are sent, and when. They know nothing of servers and HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from typing import Protocol

from bench.prompts import SYSTEM_WORDS, TEMPLATE_TOKENS, prompt
from bench.stream import Ask, Request, Stream

PROMPT_TOKENS = 128
LONG_TOKENS = 1500
NEW_TOKENS = 64
PREFIX_TOKENS = 1000
SUFFIX_TOKENS = 32
MIXED_NEW_TOKENS = 256
"""So many that the short streams of the mixed workload outlast the arrival of its long prompts."""
MIXED_LONG_NEW_TOKENS = 16
MIN_REQUESTS = 8


@dataclass(frozen=True, slots=True)
class Serving:
    """How a server is to be started for a workload."""

    slots: int
    """Requests that it can run at the same time."""
    prefix_cache: bool


class Workload(Protocol):
    """Something to measure."""

    @property
    def name(self) -> str:
        """What the tables call it."""

    @property
    def serving(self) -> Serving:
        """What it needs."""

    async def run(self, ask: Ask, seed: str) -> list[Stream]:
        """Sends the requests. The same seed gives the same requests; another one shares no prompt with them."""


@dataclass(frozen=True, slots=True)
class Chat:
    """``streams`` clients, each of which sends its next request when it has its last answer."""

    streams: int
    requests: int
    prompt_tokens: int = PROMPT_TOKENS
    new_tokens: int = NEW_TOKENS

    @property
    def name(self) -> str:
        return f"chat, {self.streams} stream{'s' if self.streams > 1 else ''}"

    @property
    def serving(self) -> Serving:
        return Serving(slots=max(16, self.streams), prefix_cache=False)

    async def run(self, ask: Ask, seed: str) -> list[Stream]:
        numbers = iter(range(self.requests))

        async def client() -> list[Stream]:
            return [
                await ask(_request(self.prompt_tokens, f"{seed} {number}", self.new_tokens), _nothing)
                for number in numbers
            ]

        return [stream for part in await _all(client() for _ in range(self.streams)) for stream in part]


@dataclass(frozen=True, slots=True)
class LongPrompt:
    """Long prompts, one after the other."""

    requests: int
    name = f"{LONG_TOKENS}-token prompt, 1 stream"
    serving = Serving(slots=16, prefix_cache=False)

    async def run(self, ask: Ask, seed: str) -> list[Stream]:
        return [await ask(_request(LONG_TOKENS, f"{seed} {number}"), _nothing) for number in range(self.requests)]


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """For each of ``prefixes``: a new prompt, the same one again, then other ends after the same prefix."""

    prefixes: int
    repeats: int = 2
    name = f"shared prefix of {PREFIX_TOKENS} tokens, 1 stream"
    serving = Serving(slots=16, prefix_cache=True)

    async def run(self, ask: Ask, seed: str) -> list[Stream]:
        streams = []
        for number in range(self.prefixes):
            system = prompt(PREFIX_TOKENS + TEMPLATE_TOKENS + SYSTEM_WORDS, f"{seed} {number}")[1]
            ends = [prompt(SUFFIX_TOKENS, f"{seed} {number} end {end}")[1] for end in range(3)]
            asked = [
                ("first", ends[0]),
                *[("again", ends[0])] * self.repeats,
                *[("other end", end) for end in ends[1:]],
            ]
            for label, end in asked:
                streams.append(await ask(Request(system, end, NEW_TOKENS, label), _nothing))
        return streams


@dataclass(frozen=True, slots=True)
class Mixed:
    """Short streams decode; once all do, a long prompt arrives every ``interval_s``, whatever the server does."""

    streams: int
    long_prompts: int
    interval_s: float
    long_label = "long prompts"

    @property
    def name(self) -> str:
        return f"{self.streams} streams while {LONG_TOKENS}-token prompts arrive"

    @property
    def serving(self) -> Serving:
        return Serving(slots=self.streams + self.long_prompts, prefix_cache=False)

    async def run(self, ask: Ask, seed: str) -> list[Stream]:
        async with asyncio.TaskGroup() as group:
            tasks, decoding = [], []
            for number in range(self.streams):
                first = asyncio.Event()
                request = _request(PROMPT_TOKENS, f"{seed} {number}", MIXED_NEW_TOKENS, "streams")
                task = group.create_task(_asked(ask, request, first))
                tasks.append(task)
                decoding.append(first.wait())
            await asyncio.gather(*decoding)
            for number in range(self.long_prompts):
                request = _request(LONG_TOKENS, f"{seed} long {number}", MIXED_LONG_NEW_TOKENS, self.long_label)
                tasks.append(group.create_task(_asked(ask, request, asyncio.Event())))
                await asyncio.sleep(self.interval_s)
        return [task.result() for task in tasks]


def arrival_window(streams: list[Stream]) -> tuple[float, float] | None:
    """From the first long prompt of a :class:`Mixed` run to the first text of the last one; ``None`` without any."""
    long = [stream for stream in streams if stream.label == Mixed.long_label and stream.pieces]
    return (min(stream.started for stream in long), max(stream.pieces[0] for stream in long)) if long else None


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    concurrency: tuple[int, ...] = (1, 4, 16, 32)
    requests_per_stream: int = 2
    long_prompts: int = 4
    prefixes: int = 3
    mixed_streams: int = 32
    mixed_interval_s: float = 1.5
    kinds: tuple[str, ...] = ("chat", "long", "prefix", "mixed")

    def workloads(self) -> list[Workload]:
        """In an order in which those with the same :class:`Serving` are neighbours."""
        kinds: dict[str, list[Workload]] = {
            "chat": [Chat(level, max(MIN_REQUESTS, level * self.requests_per_stream)) for level in self.concurrency],
            "long": [LongPrompt(self.long_prompts)],
            "prefix": [SharedPrefix(self.prefixes)],
            "mixed": [Mixed(self.mixed_streams, self.long_prompts, self.mixed_interval_s)],
        }
        chosen = [workload for kind in self.kinds for workload in kinds[kind]]
        return sorted(chosen, key=lambda workload: (workload.serving.prefix_cache, workload.serving.slots))


async def warm_up(ask: Ask, seed: str) -> Stream:
    """One short request, so that what a server does once does not count."""
    return await ask(_request(PROMPT_TOKENS, f"{seed} warm-up", 8), _nothing)


def _request(tokens: int, seed: str, new_tokens: int = NEW_TOKENS, label: str = "") -> Request:
    return Request(*prompt(tokens, seed), new_tokens, label)


async def _asked(ask: Ask, request: Request, first: asyncio.Event) -> Stream:
    try:
        return await ask(request, first.set)
    finally:
        first.set()  # a request that failed must not be waited for


async def _all(clients: Iterable[Coroutine[None, None, list[Stream]]]) -> list[list[Stream]]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(client) for client in clients]
    return [task.result() for task in tasks]


def _nothing() -> None:
    """Nobody waits for the first piece."""
