"""The corpus of schemas on the default model: ``python -m tests.structured_outputs [NUMBERS]`` runs all of it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from mantler.config import RuntimeSettings
from mantler.errors import ErrorCode, MantlerError
from mantler.messages import (
    ChatMessage,
    ChatPrompt,
    Delta,
    Finished,
    FinishReason,
    GenerateRequest,
    JsonSchemaConstraint,
    Role,
    SamplingParams,
    StopParams,
)
from runtime_server.deployed import DeployedModel, deploy
from runtime_server.models.manifest import Manifest
from runtime_server.models.pull import pull
from tests.default_model import DEFAULT_MODEL
from tests.schemas import is_valid, schema

CORPUS = 200
MAX_BATCH = 8
PROMPT = ChatPrompt((ChatMessage(Role.USER, "Answer with a JSON document that is full of made-up values."),))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one schema: ``refused``, ``valid``, ``invalid`` or ``length``, and the text."""

    verdict: str
    text: str


async def outcome(model: DeployedModel, number: int) -> Outcome:
    """Asks for a document of schema ``number``, at temperature 1 and with the number as the seed."""
    made = schema(number)
    request = GenerateRequest(
        f"schema-{number}",
        DEFAULT_MODEL,
        PROMPT,
        sampling=SamplingParams(temperature=1.0, seed=number),
        stop=StopParams(max_tokens=400),
        constraint=JsonSchemaConstraint(json.dumps(made)),
    )
    try:
        generation = await model.generation(request)
    except MantlerError as error:
        if error.code is not ErrorCode.INVALID_PARAMETER:
            raise
        return Outcome("refused", error.message)
    text, reason = "", None
    async with aclosing(generation.events()) as events:
        async for event in events:
            if isinstance(event.body, Delta):
                text += event.body.text
            elif isinstance(event.body, Finished):
                reason = event.body.reason
    if reason is not FinishReason.STOP:
        return Outcome("length", text)
    return Outcome("valid" if is_valid(made, text) else "invalid", text)


async def outcomes(home: Path, folder: Path, numbers: list[int]) -> dict[int, Outcome]:
    """The outcome of each schema, several at once."""
    settings = RuntimeSettings(home=home, max_batch=MAX_BATCH, max_queue=CORPUS, kv_memory_mb=200)
    model = await deploy(Manifest.load(folder), folder, settings)
    places = asyncio.Semaphore(MAX_BATCH)

    async def one(number: int) -> Outcome:
        async with places:
            return await outcome(model, number)

    try:
        return dict(zip(numbers, await asyncio.gather(*map(one, numbers)), strict=True))
    finally:
        await model.close()


def main() -> None:
    """Prints each schema that is not valid, and the sums."""
    from tests.conftest import ROOT, model_folder

    home = ROOT / ".cache" / "mantler"
    pull(DEFAULT_MODEL, home)
    numbers = [int(number) for number in sys.argv[1:]] or list(range(CORPUS))
    found = asyncio.run(outcomes(home, model_folder(home), numbers))
    for number, item in found.items():
        if item.verdict != "valid":
            print(number, item.verdict, item.text)  # noqa: T201 - a command
    print(dict(Counter(item.verdict for item in found.values())))  # noqa: T201 - a command


if __name__ == "__main__":
    main()
