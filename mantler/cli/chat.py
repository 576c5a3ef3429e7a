"""``mantler chat``: talk to a model in the terminal, over gRPC."""

from __future__ import annotations

import asyncio
import importlib
import sys
import uuid
from collections.abc import Callable
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING

import click

from mantler import messages as m
from mantler.cli.commands import Command
from mantler.cli.errors import CliError, show_error
from mantler.cli.options import GRPC_FIELDS, option, settings_options
from mantler.cli.settings import read
from mantler.cli.terminal import note
from mantler.cli.values import Number
from mantler.config import ClientSettings
from mantler.errors import ErrorCode, MantlerError

if TYPE_CHECKING:
    from mantler.client import RuntimeClient

TIMEOUT_S = 600.0
HELP = "/new forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer."
MAX_NAMED = 5
"""Models that an error names."""
_MODELS_HINT = "`mantler models --remote` shows what the runtime has"
_OFFLINE_HINT = "`mantler up` starts a runtime; --runtime names another one"


class Conversation:
    """What was said so far, and how the next answer is drawn."""

    def __init__(self, model: str, system: str | None, sampling: m.SamplingParams, stop: m.StopParams) -> None:
        self.model = model
        self._opening = () if system is None else (m.ChatMessage(m.Role.SYSTEM, system),)
        self._sampling = sampling
        self._stop = stop
        self.turns: tuple[m.ChatMessage, ...] = self._opening

    def forget(self) -> None:
        """Starts anew; the system message stays."""
        self.turns = self._opening

    def request(self, text: str) -> m.GenerateRequest:
        """Asks for the answer to ``text`` after all that was said."""
        asked = m.ChatMessage(m.Role.USER, text)
        return m.GenerateRequest(
            request_id=f"chat-{uuid.uuid4().hex}",
            model=self.model,
            prompt=m.ChatPrompt((*self.turns, asked)),
            sampling=self._sampling,
            stop=self._stop,
        )

    def add(self, text: str, answer: str) -> None:
        """Keeps a question with its answer, which may be the beginning of one."""
        self.turns += (m.ChatMessage(m.Role.USER, text), m.ChatMessage(m.Role.ASSISTANT, answer))


@click.command(cls=Command)
@click.argument("model", required=False)
@click.argument("prompt", required=False)
@option("--system", env="MANTLER_CHAT_SYSTEM", help="A system message that opens the conversation.")
@option(
    "--temperature",
    env="MANTLER_CHAT_TEMPERATURE",
    help="Randomness; 0 always takes the likeliest token.",
    shown_default="1",
    type=Number(float, 0, 2),
)
@option(
    "--top-p",
    env="MANTLER_CHAT_TOP_P",
    help="Share of the likeliest tokens to draw from.",
    shown_default="1",
    type=Number(float, 0, 1, open_low=True),
)
@option(
    "--seed",
    env="MANTLER_CHAT_SEED",
    help="Repeats an answer.",
    shown_default="a random one",
    type=Number(int, 0, 2**64 - 1),
)
@option(
    "--max-tokens",
    env="MANTLER_CHAT_MAX_TOKENS",
    help="Longest answer in tokens.",
    shown_default="what the context has room for",
    type=Number(int, 1, m.MAX_TOKENS),
)
@settings_options(ClientSettings, only=("runtime", *GRPC_FIELDS))
def chat(
    model: str | None,
    prompt: str | None,
    system: str | None,
    temperature: float | None,
    top_p: float | None,
    seed: int | None,
    max_tokens: int | None,
    flags: dict[str, object],
) -> None:
    """Talk to a model in the terminal.

    It is MODEL, or else the first that is ready. With PROMPT, or with text on standard input, it prints one
    answer. Without, it goes on until Ctrl-D; Ctrl-C stops an answer, not the program.

    One argument that holds a space is a PROMPT, since no model is called so. Text on standard input follows the
    PROMPT.

    \b
    Examples:
      mantler chat
      mantler chat "Why is the sky blue?"
      mantler chat smollm2:135m "Why is the sky blue?"
      mantler chat smollm2:135m "Sum this up:" < notes.txt
    """
    if model is not None and prompt is None and any(character.isspace() for character in model):
        model, prompt = None, model
    settings = read(ClientSettings, flags)
    sampling = m.SamplingParams(
        temperature=1.0 if temperature is None else temperature, top_p=1.0 if top_p is None else top_p, seed=seed
    )
    stop = m.StopParams(max_tokens=max_tokens)
    with asyncio.Runner() as runner:
        client = runner.run(_connect(settings))
        try:
            conversation = Conversation(runner.run(_served(client, model)), system, sampling, stop)
            if sys.stdin.isatty() and prompt is None:
                _loop(runner, client, conversation)
            else:
                runner.run(_answer(client, conversation.request(_one_prompt(prompt)), _write))
                click.echo()
        except MantlerError as error:
            raise CliError(error.message.rstrip("."), _hint(error)) from error
        finally:
            runner.run(client.close())


def _one_prompt(prompt: str | None) -> str:
    piped = "" if sys.stdin.isatty() else sys.stdin.read().strip()
    text = "\n\n".join(part for part in (prompt, piped) if part)
    if not text:
        raise CliError("there is no prompt", hint='give one: mantler chat MODEL "Why is the sky blue?"')
    return text


def _loop(runner: asyncio.Runner, client: RuntimeClient, conversation: Conversation) -> None:
    with suppress(ImportError):
        importlib.import_module("readline")  # line editing and history, where the system has it
    note(f"Talking to {conversation.model}. {HELP}")
    while True:
        try:
            text = input(">>> ").strip()
        except EOFError:
            note("")
            return
        except KeyboardInterrupt:
            note("\nCtrl-D or /exit leaves.")
            continue
        match text:
            case "":
                continue
            case "/exit" | "/quit":
                return
            case "/new":
                conversation.forget()
            case "/help":
                note(HELP)
            case _:
                _turn(runner, client, conversation, text)


def _turn(runner: asyncio.Runner, client: RuntimeClient, conversation: Conversation, text: str) -> None:
    said: list[str] = []

    def say(piece: str) -> None:
        said.append(piece)
        _write(piece)

    try:
        runner.run(_answer(client, conversation.request(text), say))
    except KeyboardInterrupt:
        note(" …")
    except MantlerError as error:
        click.echo()
        show_error(error.message.rstrip("."), _hint(error))
        return
    else:
        click.echo()
    conversation.add(text, "".join(said))


async def _connect(settings: ClientSettings) -> RuntimeClient:
    from mantler.client import RuntimeClient
    from mantler.security.transport import Security

    return RuntimeClient(settings.runtime, Security.load(settings))


async def _served(client: RuntimeClient, name: str | None) -> str:
    """The id of the model that is called ``name``, or of the first that is ready."""
    ready = [model.id for model in await client.list_models() if model.state is m.ModelState.READY]
    if not ready:
        raise CliError(f"the runtime at {client.address} has no model ready", hint=_MODELS_HINT)
    if name is None:
        return ready[0]
    try:
        model = await client.get_model(name)  # it knows every spelling of an id
    except MantlerError as error:
        if error.code is not ErrorCode.MODEL_NOT_FOUND:
            raise
        state = "unknown to it"
    else:
        if model.id in ready:
            return model.id
        state = model.state.value
    more = ", …" if len(ready) > MAX_NAMED else ""
    raise CliError(
        f"the runtime at {client.address} does not serve {name!r}, which is {state}",
        hint=f"it serves {', '.join(ready[:MAX_NAMED])}{more}; {_MODELS_HINT}",
    )


async def _answer(client: RuntimeClient, request: m.GenerateRequest, write: Callable[[str], None]) -> None:
    async with aclosing(client.generate(request, TIMEOUT_S)) as events:
        async for event in events:
            if isinstance(event.body, m.Delta):
                write(event.body.text)


def _write(piece: str) -> None:
    click.echo(piece, nl=False)


def _hint(error: MantlerError) -> str | None:
    match error.code:
        case ErrorCode.MACHINE_OFFLINE | ErrorCode.RUNTIME_UNAVAILABLE:
            return _OFFLINE_HINT
        case ErrorCode.MODEL_NOT_FOUND:
            return _MODELS_HINT
        case _:
            return None
