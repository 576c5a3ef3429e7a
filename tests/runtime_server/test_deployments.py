"""Loading and unloading, with a small model on the real engine."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from mantler.config import RuntimeSettings
from mantler.errors import ErrorCode, MantlerError
from mantler.messages import (
    Finished,
    GenerateRequest,
    LoadProgress,
    LoadStage,
    ModelState,
    StopParams,
    TextPrompt,
    TokenPrompt,
)
from runtime_server.deployed import DeployedModel, deploy
from runtime_server.deployments import Deployments
from runtime_server.engine.kv_plan import KvPlanError
from runtime_server.models.pull import pull
from runtime_server.models.store import ModelStore
from tests.tiny_models import CONTEXT, tiny_config, write_gguf

TINY = "tiny:latest"
PROMPT = TokenPrompt((5, 6, 7))


@pytest.fixture
async def deployments(tmp_path: Path) -> AsyncIterator[Deployments]:
    pull(str(write_gguf(tmp_path / "tiny.gguf", tiny_config("llama"))), tmp_path)
    settings = RuntimeSettings(home=tmp_path, max_batch=2, max_request_tokens=CONTEXT, prefill_chunk=16, threads=1)
    made = Deployments(settings, ModelStore(settings.models_dir))
    yield made
    await made.close()


async def load(deployments: Deployments, name: str = TINY) -> list[LoadProgress]:
    async with aclosing(deployments.load(name, pull=False)) as reports:
        return [report async for report in reports]


async def state(deployments: Deployments) -> ModelState:
    return (await deployments.model(TINY)).state


async def test_callers_who_load_at_once_share_one_load(deployments: Deployments) -> None:
    loads = await asyncio.gather(*(load(deployments) for _ in range(5)))
    assert {reports[-1].stage for reports in loads} == {LoadStage.READY}
    assert len(deployments.ready) == 1


async def test_every_spelling_of_an_id_is_the_same_model(deployments: Deployments) -> None:
    await asyncio.gather(load(deployments, "Tiny"), load(deployments, "TINY:latest"), load(deployments))
    assert len(deployments.ready) == 1
    assert deployments.serving("TINY:Latest") is deployments.serving(TINY)
    assert (await deployments.model("Tiny")).id == TINY
    await deployments.unload("tIny")
    assert deployments.ready == []


@pytest.mark.parametrize("name", ["", "../x", "/etc", "a b", "é", "x" * 100_000])
async def test_what_is_no_name_is_not_found(deployments: Deployments, name: str) -> None:
    with pytest.raises(MantlerError) as refused:
        deployments.serving(name)
    assert refused.value.code is ErrorCode.MODEL_NOT_FOUND
    with pytest.raises(MantlerError) as refused:
        await load(deployments, name)
    assert refused.value.code is ErrorCode.INVALID_REQUEST


async def test_errors_name_a_model_as_it_was_asked_for(deployments: Deployments) -> None:
    async def unload() -> None:
        await deployments.unload("GPT-4")

    for refused in (load(deployments, "GPT-4"), deployments.model("GPT-4"), unload()):
        with pytest.raises(MantlerError, match="'GPT-4'"):
            await refused


async def test_an_unload_goes_on_where_its_caller_leaves(deployments: Deployments) -> None:
    await load(deployments)
    asked = GenerateRequest("r", TINY, PROMPT, stop=StopParams(max_tokens=40, ignore_eos=True))
    generation = await deployments.serving(TINY).generation(asked)
    async with aclosing(generation.events()) as events:
        await anext(events)
        unload = asyncio.create_task(deployments.unload(TINY))
        await asyncio.sleep(0)
        unload.cancel()
        with pytest.raises(asyncio.CancelledError):
            await unload
        assert await state(deployments) is ModelState.UNLOADING
        last = [event.body async for event in events][-1]
    assert isinstance(last, Finished)
    assert last.usage.completion_tokens == 40


async def test_a_slow_caller_of_load_may_miss_an_unload(deployments: Deployments) -> None:
    async with aclosing(deployments.load(TINY, pull=False)) as slow:
        await anext(slow)
        await load(deployments)
        await deployments.unload(TINY)
        assert [report.stage async for report in slow][-1] is LoadStage.READY


async def test_a_damaged_model_is_refused_in_words(deployments: Deployments, tmp_path: Path) -> None:
    graph = ModelStore(tmp_path / "models").path(TINY) / "model.onnx"
    graph.write_bytes(b"\xff" * graph.stat().st_size)
    with pytest.raises(MantlerError, match="cannot be read") as refused:
        await load(deployments)
    assert refused.value.code is ErrorCode.INVALID_REQUEST
    assert await state(deployments) is ModelState.STORED


async def test_models_that_load_at_once_plan_one_after_the_other(
    deployments: Deployments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull(str(write_gguf(tmp_path / "other.gguf", tiny_config("llama"))), tmp_path)
    reserved = []

    async def recording(*args: Any, reserved_bytes: int) -> DeployedModel:
        reserved.append(reserved_bytes)
        return await deploy(*args, reserved_bytes=reserved_bytes)

    monkeypatch.setattr("runtime_server.deployments.deploy", recording)
    await asyncio.gather(load(deployments), load(deployments, "other:latest"))
    first, second = reserved
    assert first == 0
    assert second > 0


async def test_memory_that_the_system_lacks_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull(str(write_gguf(tmp_path / "tiny.gguf", tiny_config("llama"))), tmp_path)
    settings = RuntimeSettings(home=tmp_path, max_batch=1024, max_request_tokens=CONTEXT, threads=1)
    manifest = ModelStore(settings.models_dir).get(TINY)
    assert manifest is not None
    folder = ModelStore(settings.models_dir).path(TINY)

    def no_memory(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("runtime_server.backends.cpu.mmap.mmap", no_memory)
    with pytest.raises(KvPlanError) as refused:
        await deploy(manifest, folder, settings)
    assert "--kv-memory-mb" in refused.value.hint


async def test_tokens_are_spelled_within_bounds(deployments: Deployments) -> None:
    await load(deployments)
    model = deployments.serving(TINY)
    token_ids = await model.tokenise(TextPrompt("hello world"))
    assert await model.detokenise(TokenPrompt(tuple(token_ids))) == "hello world"
    for wrong, words in (((10**6,), "below"), ((5,) * (CONTEXT + 1), f"at most {CONTEXT}")):
        with pytest.raises(MantlerError, match=words) as raised:
            await model.detokenise(TokenPrompt(wrong))
        assert raised.value.param == "tokens"
