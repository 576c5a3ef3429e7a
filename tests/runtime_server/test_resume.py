"""An answer that was cut off goes on as if it had not been, whatever it is made of."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from mantler.config import RuntimeSettings
from mantler.errors import MantlerError
from mantler.messages import (
    ChatMessage,
    ChatPrompt,
    Delta,
    Finished,
    GenerateRequest,
    JsonSchemaConstraint,
    LogprobsParams,
    ResumePoint,
    Role,
    SamplingParams,
    StopParams,
    Tool,
    ToolChoiceMode,
    join_calls,
)
from runtime_server.deployed import DeployedModel, deploy
from runtime_server.models.manifest import Manifest
from tests.conftest import model_folder
from tests.default_model import DEFAULT_MODEL

pytestmark = pytest.mark.model

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 20}, "size": {"enum": ["small", "large"]}},
        "required": ["name", "size"],
        "additionalProperties": False,
    }
)
PROMPT = ChatPrompt((ChatMessage(Role.USER, "Tell me of a town by the sea."),))
PLAIN = GenerateRequest(
    "resume",
    DEFAULT_MODEL,
    PROMPT,
    sampling=SamplingParams(temperature=0),
    stop=StopParams(max_tokens=24),
)
DRAWN = SamplingParams(temperature=1.0, seed=5)
REQUESTS = {
    "greedy": PLAIN,
    "seeded": replace(PLAIN, sampling=replace(DRAWN, top_p=0.9, presence_penalty=0.5, logit_bias=((28, 1.0),))),
    "choices": replace(PLAIN, n=3, sampling=DRAWN),
    "logprobs": replace(
        PLAIN, logprobs=LogprobsParams(2), stop=StopParams(max_tokens=24, stop_strings=("zzz", "is a"))
    ),
    "stop": replace(PLAIN, sampling=DRAWN, stop=StopParams(max_tokens=24, stop_strings=(" the", "xyz"))),
    "schema": replace(PLAIN, sampling=DRAWN, stop=StopParams(max_tokens=60), constraint=JsonSchemaConstraint(SCHEMA)),
    "tools": replace(
        PLAIN,
        prompt=replace(PROMPT, tools=(Tool("visit", parameters=SCHEMA),), tool_choice=ToolChoiceMode.REQUIRED),
        sampling=DRAWN,
        stop=StopParams(max_tokens=70),
    ),
}


@dataclass
class Choice:
    """What came of a choice."""

    deltas: list[Delta] = field(default_factory=list)
    finished: Finished | None = None


@pytest.fixture
async def model(model_home: Path) -> AsyncIterator[DeployedModel]:
    settings = RuntimeSettings(home=model_home, max_batch=8, max_queue=32, kv_memory_mb=150)
    deployed = await deploy(Manifest.load(model_folder(model_home)), model_folder(model_home), settings)
    yield deployed
    await deployed.close()


async def run(model: DeployedModel, request: GenerateRequest) -> list[Choice]:
    made = [Choice() for _ in range(request.n)]
    generation = await model.generation(request)
    async with aclosing(generation.events()) as events:
        async for event in events:
            if isinstance(event.body, Delta):
                made[event.index].deltas.append(event.body)
            elif isinstance(event.body, Finished):
                made[event.index].finished = event.body
    return made


def summed(deltas: list[Delta], skip: Delta | None = None) -> Delta:
    """All of ``deltas`` as one, but for what ``skip`` has already."""
    whole = Delta(
        "".join(delta.text for delta in deltas),
        tuple(token_id for delta in deltas for token_id in delta.token_ids),
        tuple(entry for delta in deltas for entry in delta.logprobs),
        join_calls(part for delta in deltas for part in delta.tool_calls),
        "".join(delta.reasoning for delta in deltas),
    )
    if skip is None:
        return whole
    assert whole.text.startswith(skip.text)
    return replace(whole, token_ids=skip.token_ids + whole.token_ids, logprobs=skip.logprobs + whole.logprobs)


@pytest.mark.parametrize("name", REQUESTS)
async def test_what_was_cut_off_goes_on_as_it_was(model: DeployedModel, name: str) -> None:
    request = REQUESTS[name]
    undisturbed = await run(model, request)
    longest = max(len(choice.deltas) for choice in undisturbed)
    for cut in {0, 1, 2, 7, longest // 2, longest - 1, longest}:
        heads = [summed(choice.deltas[:cut]) for choice in undisturbed]
        over = frozenset(i for i, choice in enumerate(undisturbed) if i > 0 and cut >= len(choice.deltas))
        point = ResumePoint(tuple(head.token_ids for head in heads), over)
        resumed = await run(model, replace(request, resume=point))
        for i, (before, after) in enumerate(zip(undisturbed, resumed, strict=True)):
            if i in over:
                assert after == Choice()
                continue
            assert after.finished is not None
            assert before.finished is not None
            assert after.finished.reason is before.finished.reason
            assert after.finished.stop_string == before.finished.stop_string
            assert after.finished.usage.completion_tokens == before.finished.usage.completion_tokens
            whole, expected = summed(after.deltas, heads[i]), summed(before.deltas)
            assert (whole.text, whole.token_ids, whole.tool_calls) == (
                expected.text,
                expected.token_ids,
                expected.tool_calls,
            )
            assert [entry.chosen.token_id for entry in whole.logprobs] == [
                entry.chosen.token_id for entry in expected.logprobs
            ]


@pytest.mark.parametrize(
    ("point", "param"),
    [
        (ResumePoint(((10**6,),)), "resume.delivered"),
        (ResumePoint((tuple(range(30)),)), "resume.delivered"),
    ],
)
async def test_what_cannot_have_been_delivered_is_refused(model: DeployedModel, point: ResumePoint, param: str) -> None:
    with pytest.raises(MantlerError) as caught:
        await model.generation(replace(PLAIN, resume=point))
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("point", "param"),
    [
        (ResumePoint(()), "resume.delivered"),
        (ResumePoint(((), ())), "resume.delivered"),
        (ResumePoint(((),), frozenset({1})), "resume.finished"),
        (ResumePoint(((),), frozenset({0})), "resume.finished"),
    ],
)
def test_a_point_that_does_not_fit_its_request_is_refused(point: ResumePoint, param: str) -> None:
    with pytest.raises(MantlerError) as caught:
        replace(PLAIN, resume=point)
    assert caught.value.param == param
    with pytest.raises(MantlerError) as caught:
        replace(PLAIN, sampling=SamplingParams(temperature=1), resume=ResumePoint(((),)))
    assert caught.value.param == "seed"


async def test_slots_are_free_after_an_answer_that_was_complete(model: DeployedModel) -> None:
    (choice,) = await run(model, PLAIN)
    point = ResumePoint((summed(choice.deltas).token_ids,))
    await asyncio.gather(*(run(model, replace(PLAIN, resume=point)) for _ in range(20)))
    await model.engine.idle()
    assert (model.engine.running, model.engine.waiting) == (0, 0)
