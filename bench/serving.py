"""Measures an OpenAI-compatible server as its clients see it: streams of chat completions at several concurrencies.

Every prompt is different, so that no cache helps, and about as long as ``--prompt-words`` says. Each level runs
``--rounds`` times its concurrency and at least eight requests, after one request that warms up. Times are taken at
the client: to the first piece of text, and between pieces.

Examples:
  python bench/serving.py --url http://127.0.0.1:8080/v1 --key "$MANTLER_KEY"
  python bench/serving.py --url http://127.0.0.1:9090/v1 --model any --concurrency 1,16 --json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import aiohttp

WORDS = (  # noqa: SIM905 - reads better than thirty quoted words
    "sea light house bread winter robot moon map paper chess river stone cloud garden music window silver forest "
    "engine bridge letter harbour candle orchard signal mirror lantern meadow anchor violin"
).split()
TIMEOUT_S = 900.0


@dataclass(slots=True)
class Stream:
    """What one client saw. Times in seconds."""

    started: float
    pieces: list[float] = field(default_factory=list)
    """When each piece of text came."""
    tokens: int = 0
    """Generated tokens, as the server counts them."""
    error: str = ""

    @property
    def first(self) -> float:
        """Time to the first piece."""
        return self.pieces[0] - self.started

    @property
    def gaps(self) -> list[float]:
        """Times between pieces."""
        return [later - earlier for earlier, later in zip(self.pieces, self.pieces[1:], strict=False)]


@dataclass(frozen=True, slots=True)
class Level:
    """One row of the table. Times in milliseconds."""

    concurrency: int
    requests: int
    errors: int
    tokens_per_s: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    itl_p50_ms: float
    itl_p99_ms: float


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked for."""

    url: str
    key: str
    model: str
    prompt_words: int
    max_tokens: int

    def body(self, seed: int) -> dict[str, object]:
        """One request. The same seed gives the same prompt."""
        rng = random.Random(seed)
        prompt = " ".join(rng.choice(WORDS) for _ in range(self.prompt_words))
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": self.max_tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


async def ask(session: aiohttp.ClientSession, load: Load, seed: int) -> Stream:
    """One streamed completion."""
    stream = Stream(time.perf_counter())
    try:
        headers = {"Authorization": f"Bearer {load.key}"}
        async with session.post(f"{load.url}/chat/completions", json=load.body(seed), headers=headers) as response:
            if response.status != 200:
                stream.error = f"HTTP {response.status}"
                return stream
            async for line in response.content:
                _take(stream, line)
    except (aiohttp.ClientError, TimeoutError) as error:
        stream.error = type(error).__name__
    if not stream.error and not stream.pieces:
        stream.error = "no text"
    return stream


def _take(stream: Stream, line: bytes) -> None:
    data = line.removeprefix(b"data: ").strip()
    if data == line.strip() or data == b"[DONE]":
        return
    chunk = json.loads(data)
    if "error" in chunk:
        stream.error = "error event"
    elif any(choice["delta"].get("content") for choice in chunk.get("choices", [])):
        stream.pieces.append(time.perf_counter())
    if chunk.get("usage"):
        stream.tokens = chunk["usage"]["completion_tokens"]


async def run_level(load: Load, concurrency: int, requests: int) -> Level:
    """``requests`` completions, ``concurrency`` at a time."""
    seeds = iter(range(concurrency * 1_000_000, concurrency * 1_000_000 + requests))
    # A new connection for each request: not every server announces that it closes an old one.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        await ask(session, load, concurrency * 1_000_000 - 1)

        async def client() -> list[Stream]:
            return [await ask(session, load, seed) for seed in seeds]

        started = time.perf_counter()
        streams = [stream for part in await asyncio.gather(*(client() for _ in range(concurrency))) for stream in part]
        elapsed = time.perf_counter() - started
    good = [stream for stream in streams if not stream.error]
    gaps = [gap for stream in good for gap in stream.gaps]
    first = [stream.first for stream in good]
    return Level(
        concurrency,
        requests,
        len(streams) - len(good),
        round(sum(stream.tokens for stream in good) / elapsed, 1),
        *(round(1000 * value, 1) for value in (quantile(first, 0.5), quantile(first, 0.99))),
        *(round(1000 * value, 1) for value in (quantile(gaps, 0.5), quantile(gaps, 0.99))),
    )


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` of ``values`` lie; NaN where there are none."""
    if len(values) < 2:
        return values[0] if values else float("nan")
    return statistics.quantiles(values, n=1000, method="inclusive")[round(share * 1000) - 1]


def table(levels: list[Level]) -> str:
    """A Markdown table."""
    head = (
        "| streams | requests | errors | tokens/s | TTFT p50 | p99 | between pieces p50 | p99 |\n" + "| ---: " * 8 + "|"
    )
    rows = [
        f"| {row.concurrency} | {row.requests} | {row.errors} | {row.tokens_per_s:.0f} | {row.ttft_p50_ms:.0f} ms "
        f"| {row.ttft_p99_ms:.0f} ms | {row.itl_p50_ms:.1f} ms | {row.itl_p99_ms:.1f} ms |"
        for row in levels
    ]
    return "\n".join([head, *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080/v1", help="base URL, with /v1")
    parser.add_argument("--key", default="none", help="API key")
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--concurrency", default="1,4,16,32", help="levels, separated by commas")
    parser.add_argument("--rounds", type=int, default=2, help="requests per stream")
    parser.add_argument("--prompt-words", type=int, default=100)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    given = parser.parse_args()
    load = Load(given.url.rstrip("/"), given.key, given.model, given.prompt_words, given.max_tokens)
    levels = []
    for concurrency in (int(text) for text in given.concurrency.split(",")):
        print(f"{concurrency} streams …", file=sys.stderr)
        levels.append(asyncio.run(run_level(load, concurrency, max(8, given.rounds * concurrency))))
    print(json.dumps([asdict(level) for level in levels]) if given.json else table(levels))
    if any(level.errors for level in levels):
        sys.exit("some requests failed")


if __name__ == "__main__":
    main()
