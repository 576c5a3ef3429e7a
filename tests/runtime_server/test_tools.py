"""Tools on the default model, which was never trained to call any: what must be called is called, and validates."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import jsonschema
import pytest

from mantler.config import RuntimeSettings
from mantler.errors import MantlerError
from mantler.messages import (
    ChatMessage,
    ChatPrompt,
    Delta,
    Finished,
    FinishReason,
    GenerateRequest,
    JsonSchemaConstraint,
    LogprobsParams,
    NamedTool,
    Role,
    SamplingParams,
    StopParams,
    Tool,
    ToolCallDelta,
    ToolChoice,
    ToolChoiceMode,
)
from runtime_server.deployed import DeployedModel, deploy
from runtime_server.models.manifest import Manifest
from runtime_server.models.vocabulary import TEMPLATE_FILE
from tests.conftest import model_folder
from tests.default_model import DEFAULT_MODEL

pytestmark = pytest.mark.model

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "days": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 7}, "maxItems": 3},
    },
    "required": ["city", "unit", "days"],
    "additionalProperties": False,
}
ALARM = {
    "type": "object",
    "properties": {"at": {"type": "string", "pattern": "^[0-2][0-9]:[0-5][0-9]$"}, "loud": {"type": "boolean"}},
    "required": ["at"],
    "additionalProperties": False,
}
SCHEMAS = {"weather": WEATHER, "alarm": ALARM}
TOOLS = tuple(Tool(name, parameters=json.dumps(schema)) for name, schema in SCHEMAS.items())
ASKED = (ChatMessage(Role.USER, "What is the weather in Rome? And wake me at seven."),)


@dataclass
class Answer:
    """What came of one choice."""

    text: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finished: Finished | None = None

    def add(self, part: ToolCallDelta) -> None:
        if part.name is not None:
            assert part.id is not None
            assert part.index == len(self.calls)
            self.calls.append((part.name, ""))
        name, arguments = self.calls[part.index]
        self.calls[part.index] = (name, arguments + part.arguments)


@asynccontextmanager
async def deployed(model_home: Path, folder: Path) -> AsyncIterator[DeployedModel]:
    settings = RuntimeSettings(home=model_home, max_batch=8, max_queue=32, kv_memory_mb=150)
    manifest = Manifest.load(model_folder(model_home))
    made = await deploy(manifest, folder, settings)
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture
async def model(model_home: Path) -> AsyncIterator[DeployedModel]:
    async with deployed(model_home, model_folder(model_home)) as made:
        yield made


@pytest.fixture
async def thinker(model_home: Path, tmp_path: Path) -> AsyncIterator[DeployedModel]:
    """The default model, as if it reasoned where its template is told to."""
    folder = tmp_path / "model"
    shutil.copytree(model_folder(model_home), folder, copy_function=_linked)
    template = folder / TEMPLATE_FILE
    source = template.read_text()
    template.unlink()
    template.write_text(f"{source}{{% if enable_thinking %}}<think>\n{{% endif %}}")
    async with deployed(model_home, folder) as made:
        yield made


def _linked(source: str, target: str) -> None:
    Path(target).hardlink_to(source)


def request(prompt: ChatPrompt, *, seed: int = 1, max_tokens: int = 160) -> GenerateRequest:
    return GenerateRequest(
        "tools",
        DEFAULT_MODEL,
        prompt,
        sampling=SamplingParams(temperature=1.0, seed=seed),
        stop=StopParams(max_tokens=max_tokens),
    )


async def answers(model: DeployedModel, asked: GenerateRequest) -> list[Answer]:
    made = [Answer() for _ in range(asked.n)]
    generation = await model.generation(asked)
    async with aclosing(generation.events()) as events:
        async for event in events:
            answer = made[event.index]
            match event.body:
                case Delta() as delta:
                    answer.text += delta.text
                    answer.reasoning += delta.reasoning
                    answer.token_ids += delta.token_ids
                    for part in delta.tool_calls:
                        answer.add(part)
                case Finished() as finished:
                    answer.finished = finished
    return made


@pytest.mark.parametrize(
    ("choice", "reason"),
    [(ToolChoiceMode.REQUIRED, FinishReason.TOOL_CALLS), (NamedTool("alarm"), FinishReason.STOP)],
)
async def test_calls_that_must_be_made_validate(model: DeployedModel, choice: ToolChoice, reason: FinishReason) -> None:
    prompt = ChatPrompt(ASKED, tools=TOOLS, tool_choice=choice)
    made = await asyncio.gather(*(answers(model, request(prompt, seed=seed)) for seed in range(20)))
    ended = [answer for (answer,) in made if answer.finished and answer.finished.reason is not FinishReason.LENGTH]
    assert len(ended) >= 10
    for answer in ended:
        assert answer.finished is not None
        assert answer.finished.reason is reason
        assert answer.text == ""
        for name, arguments in answer.calls:
            jsonschema.validate(json.loads(arguments), SCHEMAS[name])
        if isinstance(choice, NamedTool):
            assert [name for name, _ in answer.calls] == [choice.name]


async def test_one_call_is_all_where_calls_are_not_parallel(model: DeployedModel) -> None:
    prompt = ChatPrompt(ASKED, tools=TOOLS, tool_choice=ToolChoiceMode.REQUIRED, parallel_tool_calls=False)
    for answer in await answers(model, replace(request(prompt), n=6)):
        assert len(answer.calls) == 1
        assert answer.finished is not None
        assert answer.finished.usage.completion_tokens == len(answer.token_ids) < 160


async def test_calls_and_their_tokens_do_not_depend_on_what_else_is_asked(model: DeployedModel) -> None:
    prompt = ChatPrompt(ASKED, tools=TOOLS, tool_choice=ToolChoiceMode.REQUIRED)
    asked = request(prompt, seed=3)
    plain, listed = await answers(model, asked), await answers(model, replace(asked, logprobs=LogprobsParams(1)))
    assert plain[0].calls == listed[0].calls
    assert plain[0].token_ids == listed[0].token_ids


async def test_strict_tools_validate_where_the_model_calls_by_itself(model: DeployedModel) -> None:
    strict = tuple(replace(tool, strict=True) for tool in TOOLS)
    begun = (*ASKED, ChatMessage(Role.ASSISTANT, "Sure."), ChatMessage(Role.USER, "Go on."))
    for answer in await answers(model, replace(request(ChatPrompt(begun, tools=strict), max_tokens=60), n=6)):
        for name, arguments in answer.calls if answer.finished and answer.finished.reason.value == "tool_calls" else ():
            jsonschema.validate(json.loads(arguments), SCHEMAS[name])


async def test_a_schema_is_kept_beside_tools_unless_a_tool_is_called(model: DeployedModel) -> None:
    constraint = JsonSchemaConstraint(
        '{"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}'
    )
    asked = replace(request(ChatPrompt(ASKED, tools=TOOLS)), n=6, constraint=constraint)
    for answer in await answers(model, asked):
        assert bool(answer.text) != bool(answer.calls)
        if answer.finished and answer.finished.reason is FinishReason.STOP:
            assert "ok" in json.loads(answer.text)


async def test_faults_are_told_of_the_field_that_they_are_in(model: DeployedModel) -> None:
    bad_tool = replace(TOOLS[0], parameters='{"type": "object", "properties": {"a": {"not": {}}}}', strict=True)
    wrong_tool = replace(TOOLS[0], parameters='{"type": "object", "properties": {"a": {"type": "x"}}}', strict=True)
    bad = JsonSchemaConstraint('{"type": "nonsense"}')
    for prompt, constraint, param in (
        (ChatPrompt(ASKED, tools=(bad_tool,)), None, "tools[0].function.parameters"),
        (ChatPrompt(ASKED, tools=TOOLS), bad, "response_format.json_schema.schema"),
        (
            ChatPrompt(ASKED, tools=TOOLS, tool_choice=ToolChoiceMode.REQUIRED),
            bad,
            "response_format.json_schema.schema",
        ),
        (ChatPrompt(ASKED, tools=(TOOLS[1], wrong_tool)), None, "tools[1].function.parameters"),
    ):
        with pytest.raises(MantlerError) as caught:
            await model.generation(replace(request(prompt), constraint=constraint))
        assert caught.value.param == param
        assert "oneOf" not in caught.value.message


async def test_a_call_that_is_cut_short_leaves_no_markup(model: DeployedModel) -> None:
    prompt = ChatPrompt(ASKED, tools=TOOLS, tool_choice=ToolChoiceMode.REQUIRED)
    for max_tokens in range(1, 12):
        (answer,) = await answers(model, request(prompt, max_tokens=max_tokens))
        assert answer.text == ""
        assert answer.finished is not None
        assert answer.finished.reason is FinishReason.LENGTH


async def test_none_offers_no_tools(model: DeployedModel) -> None:
    offered = ChatPrompt(ASKED, tools=TOOLS, tool_choice=ToolChoiceMode.NONE)
    assert await model.tokenise(offered) == await model.tokenise(ChatPrompt(ASKED))
    assert len(await model.tokenise(ChatPrompt(ASKED, tools=TOOLS))) > len(await model.tokenise(offered))


async def test_reasoning_is_kept_apart(thinker: DeployedModel) -> None:
    opened = ChatPrompt(ASKED, template_variables={"enable_thinking": True})
    (answer,) = await answers(thinker, request(opened, max_tokens=20))
    assert answer.reasoning
    assert answer.text == ""
    assert answer.finished is not None
    assert answer.finished.usage.reasoning_tokens == 20
    (answer,) = await answers(thinker, request(ChatPrompt(ASKED), max_tokens=20))
    assert answer.reasoning == ""
    assert answer.text
    assert answer.finished is not None
    assert answer.finished.usage.reasoning_tokens == 0
