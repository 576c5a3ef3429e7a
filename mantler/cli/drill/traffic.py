"""Clients that stream answers through the facade and note every token."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from mantler.cli.drill.verdict import Heard

PROMPTS = (
    "Tell me of a town by the sea.",
    "Write a short letter to a friend who lives far away.",
    "What does a lighthouse keeper do all day?",
    "Explain how bread is baked.",
    "List some animals of the forest, with a word about each.",
    "Describe a journey by train through the mountains.",
)
REQUESTS = 2 * len(PROMPTS)
"""Greedy and drawn ones."""
_RETRYABLE = frozenset({429, 503})


def body(number: int, model: str, max_tokens: int) -> dict[str, Any]:
    """A request of the drill. The same number always gets the same answer."""
    drawn = number % 2
    return {
        "model": model,
        "messages": [{"role": "user", "content": PROMPTS[number // 2 % len(PROMPTS)]}],
        "temperature": 1.0 if drawn else 0.0,
        "seed": number,
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "logprobs": True,
        "stream": True,
    }


async def listen(http: aiohttp.ClientSession, url: str, number: int, sent: dict[str, Any]) -> Heard:
    """One stream, to its end."""
    heard = Heard(number)
    try:
        async with http.post(url, json=sent) as response:
            if response.status != 200:
                heard.error = str((await response.json())["error"]["code"])
                heard.refused = response.status in _RETRYABLE
                return heard
            last_s = time.monotonic()
            async for data in _events(response):
                now_s = time.monotonic()
                if data == "[DONE]":
                    heard.done = True
                    break
                event = json.loads(data)
                if "error" in event:
                    heard.error = str(event["error"]["code"])
                    break
                for choice in event["choices"]:
                    entries = (choice.get("logprobs") or {}).get("content") or ()
                    heard.tokens.extend(entry["token"] for entry in entries)
                heard.longest_silence_s = max(heard.longest_silence_s, now_s - last_s)
                last_s = now_s
            if not heard.done and heard.error is None:
                heard.error = "ended_early"
    except (aiohttp.ClientError, TimeoutError) as error:
        heard.error = type(error).__name__
    return heard


async def keep_asking(
    http: aiohttp.ClientSession, url: str, model: str, *, until_s: float, max_tokens: int, first: int
) -> list[Heard]:
    """One stream after the other until the time is over; those that run then are heard to their end."""
    streams: list[Heard] = []
    number = first
    while time.monotonic() < until_s:
        heard = await listen(http, url, number % REQUESTS, body(number % REQUESTS, model, max_tokens))
        streams.append(heard)
        number += 1
        if heard.refused:
            await asyncio.sleep(0.2)
    return streams


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[str]:
    async for line in response.content:
        if line.startswith(b"data: "):
            yield line[len(b"data: ") :].decode().strip()
