"""Several choices of one request on the default model: seeds, constraints and log probabilities together."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from mantler.config import RuntimeSettings
from mantler.messages import (
    ChatMessage,
    ChatPrompt,
    Delta,
    Finished,
    GenerateRequest,
    LogprobsParams,
    RegexConstraint,
    Role,
    SamplingParams,
    Started,
    StopParams,
    Usage,
)
from runtime_server.deployed import DeployedModel, deploy
from runtime_server.models.manifest import Manifest
from tests.conftest import model_folder
from tests.default_model import DEFAULT_MODEL

pytestmark = pytest.mark.model

REQUEST = GenerateRequest(
    "choices",
    DEFAULT_MODEL,
    ChatPrompt((ChatMessage(Role.USER, "Invent the name of a small town and say a word about the people there."),)),
    sampling=SamplingParams(temperature=1.0, seed=11),
    stop=StopParams(max_tokens=24),
)


@pytest.fixture
async def model(model_home: Path) -> AsyncIterator[DeployedModel]:
    folder = model_folder(model_home)
    settings = RuntimeSettings(home=model_home, max_batch=3, max_queue=8, kv_memory_mb=100)
    deployed = await deploy(Manifest.load(folder), folder, settings)
    yield deployed
    await deployed.close()


async def answers(model: DeployedModel, request: GenerateRequest) -> list[str]:
    """The text of each choice. Checks what the events of every answer have in common."""
    texts = [""] * request.n
    started: set[int] = set()
    usages: dict[int, Usage] = {}
    generation = await model.generation(request)
    async with aclosing(generation.events()) as events:
        numbered = [event async for event in events]
    assert [event.seq for event in numbered] == list(range(len(numbered)))
    for event in numbered:
        assert event.index not in usages
        match event.body:
            case Started():
                started.add(event.index)
            case Delta() as delta:
                assert event.index in started
                texts[event.index] += delta.text
                if request.logprobs is not None:
                    assert [entry.chosen.token_id for entry in delta.logprobs] == list(delta.token_ids)
            case Finished() as finished:
                usages[event.index] = finished.usage
    assert usages.keys() == started == set(range(request.n))
    assert len({usage.prompt_tokens for usage in usages.values()}) == 1
    return texts


async def test_a_choice_depends_on_seed_and_number_only(model: DeployedModel) -> None:
    five = await answers(model, replace(REQUEST, n=5))
    assert len(set(five)) == 5
    assert await answers(model, replace(REQUEST, n=2)) == five[:2]
    listed = replace(REQUEST, n=3, logprobs=LogprobsParams(2))
    assert await answers(model, listed) == five[:3]
    other = replace(REQUEST, n=2, sampling=replace(REQUEST.sampling, seed=12))
    assert not set(await answers(model, other)) & set(five)


async def test_each_choice_matches_the_constraint_on_its_own(model: DeployedModel) -> None:
    pattern = "[A-Z][a-z]{3,8}, (kind|quiet|busy) people"
    request = replace(REQUEST, n=5, constraint=RegexConstraint(pattern), logprobs=LogprobsParams())
    found = await answers(model, request)
    assert all(re.fullmatch(pattern, text) for text in found)
    assert len(set(found)) > 1
    assert await answers(model, replace(request, n=1)) == found[:1]
