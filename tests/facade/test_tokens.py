"""Tokens of texts and conversations, and back."""

from __future__ import annotations

from typing import Any

import pytest

from facade.options import TOKENIZE_NO_OPS
from tests.facade.conftest import MODEL, Facade, error_of
from tests.fake_runtime import CONTEXT_LENGTH

TOKENIZE = "/v1/tokenize"
DETOKENIZE = "/v1/detokenize"
MESSAGES = [{"role": "user", "content": "a b"}]


@pytest.mark.parametrize("prompt", [{"prompt": "a b"}, {"messages": MESSAGES}], ids=["text", "chat"])
async def test_tokenize(facade: Facade, prompt: dict[str, Any]) -> None:
    fields = {"add_generation_prompt": True, "add_special_tokens": True, "return_token_strs": False, "unknown": 1}
    status, body, _ = await facade.post({"model": MODEL, **prompt, **fields}, TOKENIZE)
    assert (status, body) == (200, {"count": 2, "max_model_len": CONTEXT_LENGTH, "tokens": [0, 1]})


async def test_detokenize(facade: Facade) -> None:
    status, body, _ = await facade.post({"model": MODEL, "tokens": [7, 8]}, DETOKENIZE)
    assert (status, body) == (200, {"prompt": "t7 t8"})


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (TOKENIZE, {}, "prompt"),
        (TOKENIZE, {"prompt": ["a"]}, "prompt"),
        (TOKENIZE, {"prompt": "a", "messages": MESSAGES}, "messages"),
        (TOKENIZE, {"messages": []}, "messages"),
        (TOKENIZE, {"messages": [{}]}, "messages[0].role"),
        (TOKENIZE, {"prompt": "a", "model": ""}, "model"),
        (DETOKENIZE, {}, "tokens"),
        (DETOKENIZE, {"tokens": []}, "tokens"),
        (DETOKENIZE, {"tokens": "a"}, "tokens"),
        (DETOKENIZE, {"tokens": [1, True]}, "tokens"),
        (DETOKENIZE, {"tokens": [1.0]}, "tokens"),
        (DETOKENIZE, {"tokens": [-1]}, "tokens"),
        (DETOKENIZE, {"tokens": [2**32]}, "tokens"),
        (DETOKENIZE, {"tokens": [10**30]}, "tokens"),
        (DETOKENIZE, {"tokens": [1], "model": None}, "model"),
    ],
)
async def test_bad_requests_name_the_parameter(facade: Facade, path: str, fields: dict[str, Any], param: str) -> None:
    status, body, _ = await facade.post({"model": MODEL, **fields}, path)
    assert (status, *error_of(body)) == (400, "invalid_request_error", "invalid_parameter")
    assert body["error"]["param"] == param


async def test_options_that_cannot_be_honoured_are_refused_by_name(facade: Facade) -> None:
    for name in TOKENIZE_NO_OPS:
        _, body, _ = await facade.post({"model": MODEL, "prompt": "a", name: {"ask": "for something"}}, TOKENIZE)
        assert (body["error"]["code"], body["error"]["param"]) == ("unsupported_parameter", name)


@pytest.mark.parametrize(("path", "what"), [(TOKENIZE, {"prompt": "a"}), (DETOKENIZE, {"tokens": [1]})])
async def test_keys_models_and_limits_are_those_of_generations(facade: Facade, path: str, what: dict[str, Any]) -> None:
    good = {"model": MODEL, **what}
    assert (await facade.post(good, path, headers={}))[0] == 401
    other, _ = await facade.new_key(allowed_models=("org/other:tag",))
    assert (await facade.post(good, path, headers=other))[0] == 403
    assert (await facade.post({**good, "model": "nope"}, path))[0] == 404
    once, _ = await facade.new_key(requests_per_minute=1)
    assert (await facade.post({**good, "model": "nope"}, path, headers=once))[0] == 404
    assert (await facade.post(good, path, headers=once))[0] == 200
    status, body, response = await facade.post(good, path, headers=once)
    assert (status, *error_of(body)) == (429, "rate_limit_error", "rate_limit_exceeded")
    assert "Retry-After" in response.headers
    await facade.runtime.kill()
    assert (await facade.post(good, path))[0] == 503
