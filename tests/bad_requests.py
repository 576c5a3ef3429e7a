"""Bad requests by number: ``python -m tests.bad_requests --count 100000`` sends them to a facade on a fake runtime.

Each is a good request with one thing made wrong, and often some junk beside it. Only 4xx in OpenAI's error JSON may
come back, and a good request must still be answered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from facade.app import running
from facade.options import MESSAGE_NO_OPS, NO_OPS
from mantler.config import FacadeSettings
from tests.fake_runtime import FakeRuntime

MODEL = "smollm2:135m"
KEY = "mk_live_" + "b" * 32
PATH = "/v1/chat/completions"
AT_ONCE = 16


@dataclass(slots=True)
class BadRequest:
    """What is sent, and what is known of its answer."""

    body: bytes
    method: str = "POST"
    path: str = PATH
    headers: dict[str, str] = field(
        default_factory=lambda: {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    )
    statuses: frozenset[int] = frozenset({400})
    names_a_parameter: bool = False


_NUMBERS = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
_INTEGERS = ("top_k", "n", "seed", "max_tokens", "max_completion_tokens", "min_tokens", "top_logprobs", "priority")
_FLAGS = ("stream", "logprobs", "ignore_eos")
_STRINGS = ("model", "cache_salt", "user", "regex", "grammar", "guided_regex", "guided_grammar")
_OBJECTS = ("logit_bias", "metadata", "response_format", "structured_outputs", "stream_options")
_ARRAYS = ("messages", "stop_token_ids", "choice", "guided_choice")

_OUT_OF_RANGE: dict[str, tuple[Any, ...]] = {
    "temperature": (-0.001, 2.001, 1e300, -(10**30), 10**400),
    "top_p": (0, -1, 1.0001),
    "min_p": (-0.1, 1.1),
    "presence_penalty": (-2.1, 2.1, 1e9),
    "frequency_penalty": (-2.1, 2.1),
    "repetition_penalty": (0, -1, 10.5),
    "top_k": (-1, 2**31, 10**30),
    "n": (0, -1, 129, 10**20),
    "seed": (2**63, -(2**63) - 1, 10**50),
    "max_tokens": (0, -1, 2**31),
    "max_completion_tokens": (0, -(10**18), 10**18),
    "min_tokens": (-1, 2**40),
    "priority": (-1, 101),
    "cache_salt": ("", "s" * 257),
    "stop": ("", ["a"] * 5, ["x" * 1025], [""], [None], [["a"]], {}, 7),
    "stop_token_ids": ([-1], [2**32], [1] * 257, ["1"], [None], [1.5]),
    "logit_bias": ({"x": 1}, {"-1": 1}, {"1": 101}, {"1": None}, {"1": "1"}, {"": 0}, {"1": 1, "01": 1}),
    "top_logprobs": (1, 20, 21, -1),
    "response_format": (
        {},
        {"type": None},
        {"type": "yaml"},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}},
        {"type": "json_schema", "json_schema": {"name": "a", "schema": []}},
        {"type": "json_schema", "json_schema": {"schema": {}}},
    ),
    "structured_outputs": ({"regex": 1}, {"choice": []}, {"json": 3}, {"json_object": False}, {"structural_tag": "x"}),
    "choice": ([], [""], [1], ["a"] * 1001),
    "guided_json": (1, [], True, ""),
    "stream_options": ({}, {"include_usage": True}),
    "messages": (
        [],
        [None],
        [[]],
        [{}],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": []}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}],
        [{"role": "user", "content": [{"type": "text", "text": 1}]}],
        [{"role": "oracle", "content": "x"}],
        [{"role": "tool", "content": "x"}],
        [{"role": "user", "content": "x", "tool_calls": [{}]}],
        [{"role": "assistant", "tool_calls": [{"id": 1}]}],
        [{"role": "user", "content": "x", "name": {}}],
    ),
}


def bad_request(number: int) -> BadRequest:
    """The request with this number, always the same."""
    rng = random.Random(number)
    return rng.choice(_KINDS)(rng)


def _good() -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "x"}]}


def _value(rng: random.Random, depth: int = 0) -> Any:
    """Some JSON."""
    kinds: list[Callable[[], Any]] = [
        lambda: None,
        lambda: rng.random() < 0.5,
        lambda: rng.choice((0, 1, -1, 2**31, 2**63, -(2**64), rng.getrandbits(200))),
        lambda: rng.choice((0.0, -0.5, 1e308, 5e-324, rng.gauss(0, 100))),
        lambda: "".join(chr(rng.choice((0, 10, 34, 92, 127, 233, 0x2028, 0xFFFD, 0x1F5FC))) for _ in range(5)),
    ]
    if depth < 4:
        kinds.append(lambda: [_value(rng, depth + 1) for _ in range(rng.randrange(4))])
        kinds.append(lambda: {str(_value(rng, 4))[:5]: _value(rng, depth + 1) for _ in range(rng.randrange(4))})
    return rng.choice(kinds)()


def _wrong_field(rng: random.Random, wrong: dict[str, Any]) -> BadRequest:
    """A request with ``wrong`` in it, and junk in other fields."""
    body = _good()
    for name in rng.sample(_FIELDS, rng.choice((0, 0, 1, 3))):
        # A stream would make stream_options right, and logprobs top_logprobs.
        if name not in ("model", "messages", "stream", "logprobs"):
            body[name] = _value(rng)
    return BadRequest(json.dumps({**body, **wrong}).encode(), names_a_parameter=True)


def _wrong_type(rng: random.Random) -> BadRequest:
    kinds: dict[tuple[str, ...], tuple[type, ...]] = {
        _NUMBERS: (int, float),
        _INTEGERS: (int,),
        _FLAGS: (bool,),
        _STRINGS: (str,),
        _OBJECTS: (dict,),
        _ARRAYS: (list,),
    }
    names = rng.choice(list(kinds))
    value = _value(rng)
    while value is None or type(value) in kinds[names] or (type(value) is float and value.is_integer()):
        value = _value(rng)
    return _wrong_field(rng, {rng.choice(names): value})


def _out_of_range(rng: random.Random) -> BadRequest:
    name = rng.choice(list(_OUT_OF_RANGE))
    return _wrong_field(rng, {name: rng.choice(_OUT_OF_RANGE[name])})


def _refused_option(rng: random.Random) -> BadRequest:
    if rng.random() < 0.2:
        message = {"role": "assistant", "content": "x", rng.choice(list(MESSAGE_NO_OPS)): {"a": 1}}
        return _wrong_field(rng, {"messages": [message]})
    return _wrong_field(rng, {rng.choice(list(NO_OPS)): {"a": _value(rng)}})


def _missing(rng: random.Random) -> BadRequest:
    body = _good()
    del body[rng.choice(list(body))]
    return BadRequest(json.dumps(body).encode(), names_a_parameter=True)


def _broken_json(rng: random.Random) -> BadRequest:
    good = json.dumps(_good()).encode()
    place = rng.randrange(len(good))
    depth = rng.choice((250, 1000, 50_000))
    return BadRequest(
        rng.choice(
            (
                good[:place],
                good + rng.choice((b"}", b",", b"\x00", b"{}")),
                good[:place] + bytes([rng.choice((0x00, 0x01, 0x80, 0xC0, 0xFF))]) + good[place:],
                rng.randbytes(rng.randrange(100)) + b"\xff",
                good[:-1]
                + b', "a": '
                + rng.choice((b"NaN", b"Infinity", b"-Infinity", b"01", b"'x'", b'"\\ud800"'))
                + b"}",
                b'{"messages": ' + b"[" * depth,
                b'{"a":' * depth + b"1" + b"}" * depth,
                json.dumps(_value(rng) if rng.random() < 0.5 else [_good()]).encode() + b" x",
                json.dumps(rng.choice((None, 42, "string", [123], [{}], True))).encode(),
            )
        )
    )


def _wrong_door(rng: random.Random) -> BadRequest:
    """The right body, with the wrong key, model, address, method or type."""
    sent = BadRequest(json.dumps(_good()).encode())
    match rng.randrange(5):
        case 0:
            keys = (
                "",
                "Bearer",
                "Bearer mk_live_",
                f"Basic {KEY}",
                f"Bearer {KEY[:-1]}",
                "Bearer ' OR 1=1 --",
                "Bearer \xe9",
            )
            sent.headers["Authorization"] = rng.choice(keys)
            sent.statuses = frozenset({401})
        case 1:
            sent.body = json.dumps(
                {**_good(), "model": rng.choice(("nope", "cold:1b", "../etc", "a" * 5000, "\x00"))}
            ).encode()
            sent.statuses = frozenset({404})
        case 2:
            sent.path = rng.choice(
                ("/", "/v1", "/v1/chat", "/chat/completions", "/v1/chat/completions/", "/v1/%00", "/%ff")
            )
            sent.statuses = frozenset({404})
        case 3:
            sent.method = rng.choice(("GET", "PUT", "DELETE", "PATCH", "HEAD", "TRACE"))
            sent.statuses = frozenset({405})
        case _:
            types = (("Content-Type", "text/plain"), ("Content-Type", "multipart/form-data"))
            name, value = rng.choice((*types, ("Content-Encoding", "compress")))
            sent.headers[name] = value
            sent.statuses = frozenset({415})
    return sent


_FIELDS = sorted({*_OUT_OF_RANGE, *_NUMBERS, *_INTEGERS, *_FLAGS, *_STRINGS, *_OBJECTS, *_ARRAYS, *NO_OPS, "unknown"})
_KINDS = (_wrong_type, _out_of_range, _refused_option, _missing, _broken_json, _wrong_door)


async def statuses(numbers: Iterable[int], home: Path) -> Counter[int]:
    """Sends the requests and counts the answers. Raises ``AssertionError`` for an answer that should not be."""
    left = iter(numbers)
    seen: Counter[int] = Counter()

    async def send_some(http: aiohttp.ClientSession, url: str) -> None:
        for number in left:
            sent = bad_request(number)
            options: dict[str, Any] = {
                "data": sent.body,
                "headers": sent.headers,
                "skip_auto_headers": ["Content-Type"],
            }
            async with http.request(sent.method, f"{url}{sent.path}", **options) as response:
                seen[response.status] += 1
                _check(number, sent, response.status, await response.read())

    async with FakeRuntime() as runtime:
        settings = FacadeSettings(home=home, http="127.0.0.1:0", runtime=runtime.address, bootstrap_key=KEY)
        async with running(settings) as (host, port), aiohttp.ClientSession() as http:
            url = f"http://{host}:{port}"
            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(send_some(http, url))
            headers = {"Authorization": f"Bearer {KEY}"}
            async with http.post(f"{url}{PATH}", json=_good(), headers=headers) as response:
                assert response.status == 200
    return seen


def _check(number: int, sent: BadRequest, status: int, body: bytes) -> None:
    shown = f"request {number}: {status} {body[:500]!r}"
    assert status in sent.statuses, shown
    if sent.method == "HEAD":
        return
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}, shown
    assert error["message"], shown
    assert not sent.names_a_parameter or error["param"], shown


def main() -> None:
    """Sends the requests and prints how they were answered."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="requests to send")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        seen = asyncio.run(statuses(range(given.first, given.first + given.count), Path(home)))
    print(dict(sorted(seen.items())))  # noqa: T201 - a command


if __name__ == "__main__":
    main()
