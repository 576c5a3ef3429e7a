"""Measures one OpenAI-compatible server as its clients see it: streams of chat completions at several concurrencies.

Every prompt is different, so that no cache helps. Each level asks at least eight times, after one request that warms
up. Times are taken at the client: to the first piece of text, and between pieces. It starts no server; `make bench`
does, and compares several.

Examples:
  python -m bench.serving --url http://127.0.0.1:8080/v1 --key "$MANTLER_KEY"
  python -m bench.serving --url http://127.0.0.1:9090/v1 --model any --concurrency 1,16 --json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from dataclasses import asdict

from bench.client import Endpoint, asker, session
from bench.figures import Row, errors, row
from bench.options import levels, positive
from bench.record import Record, run
from bench.report import markdown, number
from bench.stream import Stream
from bench.workloads import MIN_REQUESTS, Chat, warm_up

HEADS = ("", "requests", "errors", "tokens/s", "TTFT p50", "p99", "between pieces p50", "p99")


async def measured(endpoint: Endpoint, chat: Chat) -> Record:
    """One level."""
    async with session() as opened:
        ask = asker(opened, endpoint)
        seed = str(time.time_ns())  # a server that is up may remember the prompts of earlier runs
        await warm_up(ask, seed)
        streams = await run(chat, ask, seed, time.perf_counter)
    return Record(endpoint.url, chat.name, 1, 0, tuple(Stream(**stream) for stream in streams))


def table(found: list[Row]) -> str:
    """A Markdown table."""
    lines = [
        [
            level.workload,
            str(level.requests),
            str(level.errors),
            number(level.mean_tokens_per_s, 0),
            number(level.ttft_p50_ms, 0, " ms"),
            number(level.ttft_p99_ms, 0, " ms"),
            number(level.itl_p50_ms, 1, " ms"),
            number(level.itl_p99_ms, 1, " ms"),
        ]
        for level in found
    ]
    return markdown(HEADS, lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8080/v1", help="base URL, with /v1 (default: %(default)s)")
    parser.add_argument("--key", default="none", help="API key")
    parser.add_argument("--model", default="smollm2:135m", help="(default: %(default)s)")
    parser.add_argument("--concurrency", type=levels, default=(1, 4, 16, 32), help="levels (default: 1,4,16,32)")
    parser.add_argument("--rounds", type=positive, default=2, help="requests per stream (default: %(default)s)")
    parser.add_argument("--prompt-tokens", type=positive, default=128, help="about so many (default: %(default)s)")
    parser.add_argument("--max-tokens", type=positive, default=64, help="new tokens (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON with every time instead of a table")
    given = parser.parse_args()
    endpoint = Endpoint(given.url.rstrip("/"), given.key, given.model)
    records = []
    for level in given.concurrency:
        print(f"{level} streams …", file=sys.stderr)
        chat = Chat(level, max(MIN_REQUESTS, level * given.rounds), given.prompt_tokens, given.max_tokens)
        records.append(asyncio.run(measured(endpoint, chat)))
    if given.json:
        print(json.dumps([asdict(record) for record in records]))
    else:
        print(table([row([record], "") for record in records]))
    if failed := errors(stream for record in records for stream in record.streams):
        sys.exit("some requests failed: " + ", ".join(f"{count} × {error}" for error, count in failed.items()))


if __name__ == "__main__":
    main()
