"""``mantler chat`` against a real gRPC server, as a process, with and without a terminal."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest

from mantler import messages as m
from mantler.cli.chat import Conversation
from mantler.errors import ErrorCode, MantlerError
from mantler.messages import Role, SamplingParams, StopParams
from tests.fake_runtime import FakeRuntime, Said, echo
from tests.mantler.cli.conftest import Mantler

COMMAND = (sys.executable, "-m", "mantler", "chat")
WAIT_S = 20
MODEL = "smollm2:135m"
FIRST = "org/other:tag"
"""The first of the fake machine's models that is ready."""


async def script(request: m.GenerateRequest) -> AsyncGenerator[Said, None]:
    """Echoes; "forever" goes on until it is cancelled, and "fail" is refused."""
    assert isinstance(request.prompt, m.ChatPrompt)
    text = request.prompt.messages[-1].content
    if text == "fail":
        raise MantlerError(ErrorCode.MODEL_NOT_FOUND, "There is no such model.")
    if text == "forever":
        yield m.Started(request.model, 1)
        while True:
            yield m.Delta("forever ")
            await asyncio.sleep(0.01)
    async for said in echo(request):
        yield said


@pytest.fixture
async def runtime() -> AsyncIterator[FakeRuntime]:
    """A runtime with the script above."""
    async with FakeRuntime() as fake:
        fake.script = script
        yield fake


async def chat(runtime: FakeRuntime, *arguments: str, stdin: bytes = b"") -> tuple[int | None, str, str]:
    """Runs the command to its end."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, "--runtime", runtime.address, stdin=-1, stdout=-1, stderr=-1
    )
    out, err = await asyncio.wait_for(process.communicate(stdin), WAIT_S)
    return process.returncode, out.decode(), err.decode()


class Terminal:
    """A chat whose standard input is a terminal."""

    def __init__(self, process: asyncio.subprocess.Process, keyboard: int) -> None:
        self.process = process
        self._keyboard = keyboard
        self.screen = ""

    def type(self, text: str) -> None:
        """Presses keys."""
        os.write(self._keyboard, text.encode())

    async def until(self, text: str) -> None:
        """Reads the screen until ``text`` stands on it, after what was waited for before."""
        assert self.process.stdout is not None
        async with asyncio.timeout(WAIT_S):
            while text not in self.screen:
                chunk = await self.process.stdout.read(4096)
                assert chunk, f"the end came before {text!r}: {self.screen!r}"
                self.screen += chunk.decode()
        self.screen = self.screen.partition(text)[2]


@asynccontextmanager
async def terminal(runtime: FakeRuntime, *arguments: str) -> AsyncIterator[Terminal]:
    """Starts an interactive chat."""
    keyboard, tty = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, "--runtime", runtime.address, stdin=tty, stdout=-1, stderr=asyncio.subprocess.STDOUT
    )
    os.close(tty)
    try:
        yield Terminal(process, keyboard)
    finally:
        os.close(keyboard)
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_one_prompt_prints_one_answer(runtime: FakeRuntime) -> None:
    code, out, err = await chat(runtime, MODEL, "Hello there", "--temperature", "0", "--max-tokens", "7", "--seed", "1")
    assert (code, out, err) == (0, "Hello there\n", "")
    request = runtime.requests[0]
    assert request.model == MODEL
    assert request.sampling == SamplingParams(temperature=0, seed=1)
    assert request.stop == StopParams(max_tokens=7)


async def test_piped_text_follows_the_prompt(runtime: FakeRuntime) -> None:
    code, out, _ = await chat(runtime, MODEL, "Sum up:", stdin=b"some notes\n")
    assert (code, out) == (0, "Sum up:\n\nsome notes\n")


async def test_without_a_model_it_takes_the_first_that_is_ready(runtime: FakeRuntime) -> None:
    code, _, _ = await chat(runtime, stdin=b"Hi")
    assert code == 0
    assert runtime.requests[0].model == FIRST
    runtime.models.clear()
    code, out, err = await chat(runtime, stdin=b"Hi")
    assert (code, out) == (1, "")
    assert err.startswith(f"error: the runtime at {runtime.address} has no model ready\nhint: ")


async def test_no_prompt_is_an_error(runtime: FakeRuntime) -> None:
    code, _, err = await chat(runtime, MODEL)
    assert code == 1
    assert "error: there is no prompt\nhint: " in err


async def test_a_refusal_is_an_error_with_a_hint(runtime: FakeRuntime) -> None:
    code, out, err = await chat(runtime, MODEL, "fail")
    assert (code, out) == (1, "")
    assert err == "error: There is no such model\nhint: `mantler models --remote` shows what the runtime has\n"


@pytest.mark.parametrize(
    ("flag", "value", "wanted"),
    [
        ("--temperature", "3", "a number from 0 to 2"),
        ("--temperature", "nan", "a number from 0 to 2"),
        ("--top-p", "0", "a number above 0, at most 1"),
        ("--seed", "-1", "a whole number from 0 to 18446744073709551615"),
        ("--max-tokens", "1.5", "a whole number from 1 to 2147483647"),
    ],
)
def test_a_value_out_of_range_is_bad_usage(flag: str, value: str, wanted: str, mantler: Mantler) -> None:
    result = mantler("chat", MODEL, "Hi", flag, value)
    assert result.code == 2
    assert (
        result.err == f"error: {flag}: must be {wanted}, got '{value}'\nhint: mantler chat --help shows what it takes\n"
    )


async def test_one_argument_with_spaces_is_a_prompt(runtime: FakeRuntime) -> None:
    code, out, _ = await chat(runtime, "Why is the sky blue?")
    assert (code, out) == (0, "Why is the sky blue?\n")
    assert runtime.requests[0].model == FIRST
    code, out, _ = await chat(runtime, "Sum up:", stdin=b"notes")
    assert (code, out) == (0, "Sum up:\n\nnotes\n")


@pytest.mark.parametrize(("name", "state"), [("nope", "unknown to it"), ("cold:1b", "stored"), ("", "unknown to it")])
async def test_a_model_that_is_not_served_is_told_at_the_start(runtime: FakeRuntime, name: str, state: str) -> None:
    for arguments in ([name], [name, "Hi"]):
        code, out, err = await chat(runtime, *arguments, stdin=b"Hi")
        assert (code, out) == (1, "")
        assert err == (
            f"error: the runtime at {runtime.address} does not serve '{name}', which is {state}\n"
            f"hint: it serves {FIRST}, {MODEL}; `mantler models --remote` shows what the runtime has\n"
        )
    async with terminal(runtime, name) as screen:
        await screen.until("does not serve")
        assert await asyncio.wait_for(screen.process.wait(), WAIT_S) == 1
    assert runtime.requests == []


async def test_no_runtime_is_an_error_with_a_hint(runtime: FakeRuntime) -> None:
    await runtime.kill()
    code, _, err = await chat(runtime, MODEL, "Hi")
    assert code == 1
    assert err.startswith("error: The machine is offline")
    assert "hint: `mantler up` starts a runtime" in err


async def test_a_conversation_remembers_and_forgets(runtime: FakeRuntime) -> None:
    async with terminal(runtime) as screen:
        await screen.until(f"Talking to {FIRST}")
        for line, answer in (("one", "one"), ("two", "two"), ("/new", ">>> "), ("three", "three")):
            await screen.until(">>> ") if answer != ">>> " else None
            screen.type(line + "\n")
            await screen.until(answer)
        screen.type("/exit\n")
        assert await asyncio.wait_for(screen.process.wait(), WAIT_S) == 0
    prompts = [[turn.content for turn in request.prompt.messages] for request in runtime.requests]  # type: ignore[union-attr]
    assert prompts == [["one"], ["one", "one", "two"], ["three"]]


async def test_ctrl_c_stops_the_answer_and_not_the_program(runtime: FakeRuntime) -> None:
    async with terminal(runtime) as screen:
        await screen.until(">>> ")
        screen.type("forever\n")
        await screen.until("forever forever ")
        screen.process.send_signal(signal.SIGINT)
        await asyncio.wait_for(runtime.idle(), WAIT_S)
        assert runtime.cancelled == 1
        await screen.until(">>> ")
        screen.type("fail\n")
        await screen.until("error: There is no such model")
        await screen.until(">>> ")
        screen.type("again\n")
        await screen.until("again")
        screen.type("\x04")
        assert await asyncio.wait_for(screen.process.wait(), WAIT_S) == 0


async def test_ctrl_c_ends_a_single_answer(runtime: FakeRuntime) -> None:
    process = await asyncio.create_subprocess_exec(
        *COMMAND, MODEL, "forever", "--runtime", runtime.address, stdin=asyncio.subprocess.DEVNULL, stdout=-1, stderr=-1
    )
    assert process.stdout is not None
    await asyncio.wait_for(process.stdout.readuntil(b"forever "), WAIT_S)
    process.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(process.communicate(), WAIT_S)
    assert process.returncode == 130
    assert b"Traceback" not in err
    await asyncio.wait_for(runtime.idle(), WAIT_S)
    assert runtime.cancelled == 1


def test_the_system_message_stays() -> None:
    conversation = Conversation("m", "Be brief.", SamplingParams(), StopParams())
    conversation.add("a", "b")
    conversation.forget()
    messages = conversation.request("c").prompt.messages  # type: ignore[union-attr]
    assert [(turn.role, turn.content) for turn in messages] == [(Role.SYSTEM, "Be brief."), (Role.USER, "c")]
