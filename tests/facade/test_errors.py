"""Every other error, and what all answers have in common."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import aiohttp
import pytest

from facade.answer import encode_json
from facade.app import running
from mantler import messages as m
from tests.facade.conftest import AUTH, KEY, MODEL, Facade, chat, error_of, make_settings
from tests.fake_runtime import Body, FakeRuntime, Gate, model


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": "Bearer sk-something"},
        {"Authorization": f"Bearer {KEY[:-1]}x"},
        {"Authorization": "Bearer mk_live_'; drop table api_keys; --aaaaaaaaaaaaaaaaaaaa"},
    ],
    ids=repr,
)
async def test_401(facade: Facade, headers: dict[str, str]) -> None:
    for path in ("/v1/models", f"/v1/models/{MODEL}"):
        assert (await facade.get(path, headers=headers))[0] == 401
    status, body, response = await facade.post(chat(), headers=headers)
    assert (status, *error_of(body)) == (401, "authentication_error", "invalid_api_key")
    assert response.headers["WWW-Authenticate"] == "Bearer"
    # The key comes first: nothing is said about the body.
    assert (await facade.post(b"not json", headers=headers))[0] == 401


async def test_revoked_and_expired_keys_end_on_the_next_request(facade: Facade) -> None:
    from mantler.tenancy.store import KeyStore

    headers, key_id = await facade.new_key()
    assert (await facade.get("/v1/models", headers=headers))[0] == 200
    async with await KeyStore.open(facade.settings.database_url) as keys:
        await keys.revoke(key_id)
    assert (await facade.get("/v1/models", headers=headers))[0] == 401
    expired, _ = await facade.new_key(expires_unix_s=int(time.time()))
    assert (await facade.get("/v1/models", headers=expired))[0] == 401
    fresh, _ = await facade.new_key(expires_unix_s=int(time.time()) + 3600)
    assert (await facade.get("/v1/models", headers=fresh))[0] == 200


async def test_403_and_the_models_of_a_key(facade: Facade) -> None:
    headers, _ = await facade.new_key(allowed_models=("org/other:tag",))
    _, body, _ = await facade.get("/v1/models", headers=headers)
    assert [each["id"] for each in body["data"]] == ["org/other:tag"]
    assert (await facade.get("/v1/models/org/other:tag", headers=headers))[0] == 200
    for status, body, _ in (
        await facade.get(f"/v1/models/{MODEL}", headers=headers),
        await facade.get("/v1/models/never-heard-of", headers=headers),
        await facade.post(chat(), headers=headers),
    ):
        assert (status, *error_of(body)) == (403, "permission_error", "model_not_allowed")
    assert (await facade.post(chat(temperature=9), headers=headers))[0] == 400


async def test_models(facade: Facade) -> None:
    status, body, _ = await facade.get("/v1/models")
    entry = {"object": "model", "created": 1_700_000_000, "owned_by": "mantler"}
    assert (status, body) == (
        200,
        {"object": "list", "data": [{"id": "org/other:tag", **entry}, {"id": MODEL, **entry}]},
    )
    for path in (MODEL, "org/other:tag", "org%2Fother%3Atag"):
        status, body, _ = await facade.get(f"/v1/models/{path}")
        assert (status, body["object"]) == (200, "model")


async def test_404_for_models(facade: Facade) -> None:
    for name in ("nope", "cold:1b"):
        for status, body, _ in (
            await facade.get(f"/v1/models/{name}"),
            await facade.post({**chat(), "model": name}),
            await facade.post({**chat(stream=True), "model": name}),
        ):
            assert (status, *error_of(body)) == (404, "not_found_error", "model_not_found")
            assert body["error"]["message"] == (
                f"The model '{name}' is not served here. This API key may use org/other:tag, {MODEL}."
            )


async def test_404_for_models_names_only_those_of_the_key_and_not_too_many(facade: Facade) -> None:
    own, _ = await facade.new_key(allowed_models=(MODEL, "nope"))
    _, body, _ = await facade.get("/v1/models/nope", headers=own)
    assert body["error"]["message"].endswith(f" This API key may use {MODEL}.")
    facade.runtime.models |= {f"m{i}:1": model(f"m{i}:1") for i in range(9)}
    _, body, _ = await facade.post({**chat(), "model": "N" * 1000})
    assert body["error"]["message"] == (
        f"The model '{'N' * 79}…' is not served here. This API key may use m0:1, m1:1, m2:1, m3:1, m4:1 and 6 more."
    )
    facade.runtime.models.clear()
    _, body, _ = await facade.post({**chat(), "model": "nope"})
    assert body["error"]["message"].endswith(" No model that this API key may use is served now.")


async def test_a_frozen_runtime_is_offline_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def frozen(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("facade.served.LOOKUP_TIMEOUT_S", 0.1)
    monkeypatch.setattr("tests.fake_runtime._Machine.GetMachine", frozen)
    async with (
        FakeRuntime() as runtime,
        running(make_settings(tmp_path, runtime.address)) as (host, port, _),
        aiohttp.ClientSession(headers=AUTH) as http,
    ):
        for path in ("/v1/models", f"/v1/models/{MODEL}"):
            async with http.get(f"http://{host}:{port}{path}") as response:
                assert response.status == 503
                assert (await response.json())["error"]["code"] == "machine_offline"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v1/embeddings", "The API /v1/embeddings is not served yet."),
        ("/v1/responses/resp_1/cancel", "The API /v1/responses is not served yet."),
        ("/completions", "There is nothing at this address; the base URL of a client ends with one /v1."),
        ("/chat/completions", "There is nothing at this address; the base URL of a client ends with one /v1."),
        ("/v1/v1/models", "There is nothing at this address; the base URL of a client ends with one /v1."),
        ("/", "There is nothing at this address."),
    ],
)
async def test_404_for_addresses_says_what_is_served(facade: Facade, path: str, words: str) -> None:
    async with facade.http.post(f"{facade.url}{path}", json={}) as response:
        body = await response.json()
    assert (response.status, *error_of(body)) == (404, "not_found_error", "route_not_found")
    served = "This server has POST /v1/chat/completions, POST /v1/completions, POST /v1/tokenize, "
    served += (
        "POST /v1/detokenize, POST /mantler.v1.{service}/{method}, GET /v1/models, GET /v1/models/{id}, GET /health, "
    )
    served += "GET /openapi.json and GET /docs."
    assert body["error"]["message"] == f"{words} {served}"


async def test_json_is_readable_in_a_terminal(facade: Facade) -> None:
    for path, status in (("/health", 200), ("/v1/models", 401), ("/nowhere", 404)):
        async with facade.http.get(f"{facade.url}{path}") as response:
            text = await response.text()
        assert response.status == status
        assert text.endswith("}\n")
        assert "\\u" not in text
    assert encode_json("\ud800…") == b'"\\ud800\xe2\x80\xa6"', "half a surrogate pair is no UTF-8, and no failure"


async def test_health_needs_no_key(facade: Facade) -> None:
    status, body, _ = await facade.get("/health", headers={})
    assert (status, body) == (200, {"status": "ok"})


@pytest.mark.parametrize("stream", [False, True])
async def test_a_bug_of_the_runtime_is_500_without_its_words(
    facade: Facade, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(_: m.GenerateRequest) -> AsyncGenerator[Body, None]:
        raise RuntimeError("secret detail")
        yield

    facade.runtime.script = broken
    with caplog.at_level(logging.CRITICAL, "grpc._cython.cygrpc"):
        status, body, _ = await facade.post(chat(stream=stream))
    assert (status, *error_of(body)) == (500, "internal_error", "internal_error")
    assert "secret" not in json.dumps(body)


async def test_a_bug_of_ours_is_500_and_logged(
    facade: Facade, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("facade.routes.chat.parse_chat_body", broken)
    status, body, _ = await facade.post(chat())
    assert (status, *error_of(body)) == (500, "internal_error", "internal_error")
    assert "secret" not in json.dumps(body)
    assert "secret detail" in caplog.text


async def test_a_gap_in_the_stream_is_an_error(facade: Facade) -> None:
    async def unfinished(request: m.GenerateRequest) -> AsyncGenerator[Body, None]:
        yield m.Started(request.model, 1)
        yield m.Delta("a", (1,))

    facade.runtime.script = unfinished
    assert (await facade.post(chat()))[0] == 500
    data, _ = await facade.stream(chat())
    assert json.loads(data[-1])["error"]["code"] == "internal_error"


async def test_database_failure_is_503_never_401(facade: Facade) -> None:
    database = sqlite3.connect(facade.settings.home / "mantler.db")
    database.execute("ALTER TABLE api_keys RENAME TO hidden")
    database.commit()
    status, body, response = await facade.get("/v1/models")
    assert (status, *error_of(body)) == (503, "service_unavailable", "store_unavailable")
    assert response.headers["Retry-After"] == "1"
    database.execute("ALTER TABLE hidden RENAME TO api_keys")
    database.commit()
    database.close()
    assert (await facade.get("/v1/models"))[0] == 200


@pytest.mark.parametrize("changes", [{"max_connections": 1}])
async def test_max_connections(facade: Facade) -> None:
    gate = facade.runtime.script = Gate(stop_after=1)
    first = asyncio.create_task(facade.post(chat()))
    await gate.reached.wait()
    status, body, response = await facade.post(chat())
    assert (status, body["error"]["code"]) == (503, "runtime_unavailable")
    assert response.headers["Retry-After"] == "1"
    gate.opened.set()
    assert (await first)[0] == 200
    assert (await facade.post(chat()))[0] == 200


@pytest.mark.parametrize("changes", [{"request_timeout_s": 0.2}])
async def test_deadline(facade: Facade) -> None:
    facade.runtime.script = Gate(stop_after=0)
    status, body, _ = await facade.post(chat())
    assert (status, *error_of(body)) == (504, "timeout_error", "deadline_exceeded")
    facade.runtime.script = Gate(stop_after=2)
    data, _ = await facade.stream(chat())
    assert json.loads(data[-1])["error"]["code"] == "deadline_exceeded"
    await facade.runtime.idle()


async def test_access_log_has_numbers_and_no_text(facade: Facade, caplog: pytest.LogCaptureFixture) -> None:
    headers, key_id = await facade.new_key()
    with caplog.at_level(logging.INFO):
        await facade.post(chat("SECRETPROMPT two"), headers={**headers, "x-request-id": "req-7"})
        await facade.post({**chat(), "model": "nope\nforged line"})
    lines = [record.getMessage() for record in caplog.records if record.name == "facade.access"]
    assert len(lines) == 2
    for part in ("request_id=req-7", f"key_id={key_id}", f"model={MODEL}", "status=200", "prompt_tokens=2"):
        assert part in lines[0]
    for part in ("completion_tokens=2", "duration_s=", "first_token_s="):
        assert part in lines[0]
    assert "status=404" in lines[1]
    assert "error=model_not_found" in lines[1]
    assert "\n" not in lines[1]
    assert "SECRETPROMPT" not in caplog.text
    assert headers["Authorization"].removeprefix("Bearer ") not in caplog.text


async def test_health_is_logged_for_those_who_look_closely(facade: Facade, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "facade.access"):
        await facade.get("/health")
        async with facade.http.post(f"{facade.url}/health"):
            pass
    levels = [record.levelname for record in caplog.records if record.name == "facade.access"]
    assert levels == ["DEBUG", "INFO"]


async def test_a_client_that_leaves_after_done_was_served(facade: Facade, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    def note(*_: object, status: int, **__: object) -> None:
        logged.set_result(status)

    logged: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    monkeypatch.setattr("aiohttp.web.StreamResponse.write_eof", never)
    monkeypatch.setattr("facade.exchange.log_event", note)
    async with facade.http.post(f"{facade.url}/v1/chat/completions", json=chat(stream=True), headers=AUTH) as response:
        async for line in response.content:
            if line == b"data: [DONE]\n":
                break
        response.close()
    assert await asyncio.wait_for(logged, 5) == 200


async def test_model_states_are_seen_at_once(facade: Facade) -> None:
    facade.runtime.models[MODEL] = model(MODEL, m.ModelState.LOADING)
    _, body, _ = await facade.get("/v1/models")
    assert [each["id"] for each in body["data"]] == ["org/other:tag"]


async def test_broken_http_is_refused_and_not_quoted_in_the_log(
    facade: Facade, caplog: pytest.LogCaptureFixture
) -> None:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    for raw in (b"SECRET\r\n\r\n", f"{head}Transfer-Encoding: chunked\r\n\r\nSECRET\r\n".encode()):
        reader, writer = await asyncio.open_connection("127.0.0.1", facade.port)
        writer.write(raw)
        assert (await reader.readline()).split()[1] == b"400"
        writer.close()
    assert "SECRET" not in caplog.text
    assert (await facade.post(chat()))[0] == 200
