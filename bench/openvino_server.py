"""A small OpenAI-compatible server over OpenVINO GenAI, for the benchmark: streamed greedy chat completions.

The engine has a process of its own, because a step keeps Python's lock, and an HTTP server beside it would answer
between steps only. Needs openvino-genai and aiohttp. It serves until SIGTERM or Ctrl-C.

Example:
  python -m bench.openvino_server --gguf model.gguf --threads 2 --port 8090
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import multiprocessing as mp
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from aiohttp import web

from bench.options import add_openvino_options

if TYPE_CHECKING:
    from bench.openvino_engine import EngineSettings, Output

START_S = 300
SHUTDOWN_S = 5.0


def compute(pipe: Connection, settings: EngineSettings) -> None:
    """The engine's process: takes ``(verb, request, …)``, sends lists of outputs, and ends with the pipe."""
    from bench.openvino_engine import Engine

    engine = Engine(settings)
    pipe.send(engine.vocabulary())
    try:
        while True:
            while pipe.poll(0 if engine.busy else None):
                verb, request, *rest = pipe.recv()
                if verb == "add":
                    pipe.send([(request, engine.add(request, *rest))])
                else:
                    engine.cancel(request)
            if engine.busy:
                pipe.send(engine.step())
    except (EOFError, BrokenPipeError):
        return  # the server is gone


@dataclass(slots=True)
class Answers:
    """Hands what the engine sends to the requests that wait for it."""

    pipe: Connection
    vocabulary: dict[int, bytes]
    numbers: itertools.count[int] = field(default_factory=itertools.count)
    waiting: dict[int, asyncio.Queue[Any]] = field(default_factory=dict)

    def take(self) -> None:
        """Called when the pipe has something."""
        for item in self.pipe.recv():
            queue = self.waiting.get(item[0] if isinstance(item, tuple) else item.request)
            if queue is not None:
                queue.put_nowait(item)

    async def generate(self, messages: list[dict[str, str]], max_tokens: int) -> AsyncIterator[int | Output]:
        """The length of the prompt, then the outputs. A queue holds at most ``max_tokens`` of them."""
        number = next(self.numbers)
        queue = self.waiting[number] = asyncio.Queue()
        self.pipe.send(("add", number, messages, max_tokens))
        finished = False
        try:
            yield (await queue.get())[1]
            while not finished:
                output = await queue.get()
                finished = output.finished
                yield output
        finally:
            del self.waiting[number]
            if not finished:
                self.pipe.send(("cancel", number))


ANSWERS: web.AppKey[Answers] = web.AppKey("answers", Answers)


def event(value: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"


async def chat(request: web.Request) -> web.StreamResponse:
    """``POST /v1/chat/completions``: always streamed, with usage."""
    asked = await request.json()
    answers = request.app[ANSWERS]
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    prompt_tokens, tokens, held = 0, 0, b""
    async for item in answers.generate(asked["messages"], asked["max_tokens"]):
        if isinstance(item, int):
            prompt_tokens = item
            continue
        tokens += len(item.token_ids)
        held += b"".join(answers.vocabulary[token] for token in item.token_ids)
        text, held = whole(held)
        if text:
            await response.write(event({"choices": [{"index": 0, "delta": {"content": text}}]}))
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens}
    await response.write(event({"choices": [], "usage": usage}) + b"data: [DONE]\n\n")
    return response


def whole(data: bytes) -> tuple[str, bytes]:
    """``data`` as text, and the bytes at its end that are the beginning of a character."""
    for length in range(min(3, len(data)) + 1):
        head, rest = data[: len(data) - length], data[len(data) - length :]
        try:
            return head.decode(), rest
        except UnicodeDecodeError:
            continue
    return data.decode(errors="replace"), b""


async def health(_: web.Request) -> web.Response:
    """``GET /health``."""
    return web.json_response({"status": "ok"})


async def serve(given: argparse.Namespace) -> None:
    """Starts the engine, then serves until it is cancelled."""
    from bench.openvino_engine import EngineSettings

    settings = EngineSettings(given.gguf, given.threads, given.slots, given.prefix_cache)
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=compute, args=(theirs, settings), daemon=True)
    process.start()
    theirs.close()
    try:
        if not await asyncio.to_thread(ours.poll, START_S):
            raise TimeoutError("the engine does not start")
        answers = Answers(ours, ours.recv())
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        loop.add_reader(ours.fileno(), answers.take)
        loop.add_reader(process.sentinel, stop.set)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        app = web.Application()
        app[ANSWERS] = answers
        app.add_routes([web.get("/health", health), web.post("/v1/chat/completions", chat)])
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=SHUTDOWN_S)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", given.port).start()
        print("serving", flush=True)
        await stop.wait()
        await runner.cleanup()
    finally:
        process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_openvino_options(parser)
    parser.add_argument("--port", type=int, default=8090)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
