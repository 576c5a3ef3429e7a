"""What the soak test asks: a random mix of chat completions, the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from bench.prompts import WORDS, prompt, words

LONG_TOKENS = 1500
PREFIXES = 4
PREFIX_WORDS = 400
CANARIES = 3
CANCELLED_SHARE = 0.2
CANCEL_WITHIN_S = 3.0
KEYS = frozenset({"mood", "level"})
SCHEMA = {
    "type": "object",
    "properties": {
        "mood": {"enum": ["calm", "busy", "wild"]},
        "level": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": sorted(KEYS),
    "additionalProperties": False,
}
STOPS = ("the", " a", "\n", ".", "ing")


@dataclass(frozen=True, slots=True)
class Call:
    """One request and how its client behaves."""

    kind: str
    body: dict[str, Any]
    cancel_after_s: float | None = None
    """When the client goes away, whatever the answer is doing; ``None``: it stays."""
    pause_s: float = 0.0
    """How long the client sleeps after each line that it reads, at first."""
    canary: str = ""
    """Calls with the same one must get the same text, whatever runs beside them."""
    keys: frozenset[str] = frozenset()
    """Answers that are not cut short are JSON objects with just these keys."""


@dataclass(slots=True)
class Mix:
    """An endless mix of calls to ``model``."""

    model: str
    rng: random.Random
    _made: int = field(default=0, init=False)

    def __iter__(self) -> Iterator[Call]:
        return self

    def __next__(self) -> Call:
        [make] = self.rng.choices(list(KINDS), list(KINDS.values()))
        call = make(self)
        if not call.canary and self.rng.random() < CANCELLED_SHARE:
            return replace(call, cancel_after_s=self.rng.uniform(0, CANCEL_WITHIN_S))
        return call

    def burst(self, count: int) -> list[Call]:
        """Short calls, to be made all at once."""
        return [replace(self._short(), kind="burst", body=self._short().body | {"max_tokens": 8}) for _ in range(count)]

    def _body(self, tokens: int, max_tokens: int, **more: object) -> dict[str, Any]:
        self._made += 1
        system, user = prompt(tokens, f"{self.rng.random()} {self._made}")
        return self._chat(system, user, max_tokens, **more)

    def _chat(self, system: str, user: str, max_tokens: int, **more: object) -> dict[str, Any]:
        streamed = {"stream": True, "stream_options": {"include_usage": True}}
        turns = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        return {"model": self.model, "messages": turns, "max_tokens": max_tokens, **streamed, **more}

    def _short(self) -> Call:
        return Call("short", self._body(self.rng.randint(32, 200), self.rng.randint(1, 96), temperature=0))

    def _long(self) -> Call:
        return Call("long", self._body(LONG_TOKENS, self.rng.randint(1, 32), temperature=0))

    def _sampled(self) -> Call:
        rng = self.rng
        sampling: dict[str, object] = {"temperature": round(rng.uniform(0.1, 2.0), 2)}
        if rng.random() < 0.5:
            sampling["top_p"] = round(rng.uniform(0.1, 1.0), 2)
        if rng.random() < 0.5:
            sampling["top_k"] = rng.randint(1, 100)
        if rng.random() < 0.3:
            sampling["min_p"] = round(rng.uniform(0.0, 0.3), 2)
        if rng.random() < 0.5:
            sampling["seed"] = rng.randrange(2**32)
        return Call("sampled", self._body(rng.randint(32, 300), rng.randint(8, 128), **sampling))

    def _stop(self) -> Call:
        stops = self.rng.sample(STOPS, self.rng.randint(1, 4))
        return Call("stop", self._body(self.rng.randint(32, 128), 96, temperature=0.8, stop=stops))

    def _prefix(self) -> Call:
        system = words(PREFIX_WORDS, random.Random(self.rng.randrange(PREFIXES)))
        return Call("prefix", self._chat(system, words(20, self.rng), 32, temperature=0))

    def _whole(self) -> Call:
        body = self._body(self.rng.randint(32, 200), self.rng.randint(1, 64), ignore_eos=True)
        return Call("whole", {name: value for name, value in body.items() if not name.startswith("stream")})

    def _choices(self) -> Call:
        number = self.rng.randint(2, 4)
        return Call("choices", self._body(self.rng.randint(32, 300), self.rng.randint(8, 48), n=number, logprobs=True))

    def _structured(self) -> Call:
        schema = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA}}
        return Call("structured", self._body(self.rng.randint(32, 200), 64, response_format=schema), keys=KEYS)

    def _slow(self) -> Call:
        return Call("slow reader", self._body(64, 300, ignore_eos=True), pause_s=self.rng.uniform(0.02, 0.2))

    def _canary(self) -> Call:
        number = self.rng.randrange(CANARIES)
        question = f"Tell me about the {WORDS[number]}, the {WORDS[number + 1]} and the {WORDS[number + 2]}."
        body = self._chat("You are a helpful assistant.", question, 48, temperature=0)
        return Call("canary", body, canary=question)


KINDS: dict[Callable[[Mix], Call], float] = {
    Mix._short: 30,
    Mix._sampled: 20,
    Mix._prefix: 15,
    Mix._stop: 10,
    Mix._long: 8,
    Mix._whole: 7,
    Mix._slow: 5,
    Mix._choices: 5,
    Mix._structured: 5,
    Mix._canary: 5,
}
"""How often each kind is called, as weights."""
