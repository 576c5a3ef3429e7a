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
from facade.options import MESSAGE_NO_OPS
from mantler.config import FacadeSettings
from tests.bad_fields import ADDRESSES, Address
from tests.fake_runtime import FakeRuntime

KEY = "mk_live_" + "b" * 32
AT_ONCE = 16


@dataclass(slots=True)
class BadRequest:
    """What is sent, and what is known of its answer."""

    path: str
    body: bytes
    method: str = "POST"
    headers: dict[str, str] = field(
        default_factory=lambda: {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    )
    statuses: frozenset[int] = frozenset({400})
    names_a_parameter: bool = False


def bad_request(number: int) -> BadRequest:
    """The request with this number, always the same."""
    rng = random.Random(number)
    [address] = rng.choices(ADDRESSES, [each.share for each in ADDRESSES])
    return rng.choice(_KINDS if address.refused else _KINDS_OF_ALL)(rng, address)


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


def _wrong_field(rng: random.Random, address: Address, wrong: dict[str, Any]) -> BadRequest:
    """A request with ``wrong`` in it, and junk in other fields."""
    body = dict(address.good)
    for name in rng.sample(address.fields, min(rng.choice((0, 0, 1, 3)), len(address.fields))):
        # A stream would make stream_options right, and logprobs top_logprobs.
        if name not in (*address.good, "stream", "logprobs"):
            body[name] = _value(rng)
    return BadRequest(address.path, json.dumps({**body, **wrong}).encode(), names_a_parameter=True)


def _wrong_type(rng: random.Random, address: Address) -> BadRequest:
    taken = rng.choice(list(address.types))
    value = _value(rng)
    while value is None or type(value) in taken or (type(value) is float and value.is_integer()):
        value = _value(rng)
    return _wrong_field(rng, address, {rng.choice(address.types[taken]): value})


def _out_of_range(rng: random.Random, address: Address) -> BadRequest:
    name = rng.choice(list(address.out_of_range))
    return _wrong_field(rng, address, {name: rng.choice(address.out_of_range[name])})


def _refused_option(rng: random.Random, address: Address) -> BadRequest:
    if "messages" in address.good and rng.random() < 0.2:
        message = {"role": "assistant", "content": "x", rng.choice(list(MESSAGE_NO_OPS)): {"a": 1}}
        return _wrong_field(rng, address, {"messages": [message]})
    return _wrong_field(rng, address, {rng.choice(address.refused): {"a": _value(rng)}})


def _missing(rng: random.Random, address: Address) -> BadRequest:
    body = dict(address.good)
    del body[rng.choice(list(body))]
    return BadRequest(address.path, json.dumps(body).encode(), names_a_parameter=True)


def _broken_json(rng: random.Random, address: Address) -> BadRequest:
    good = json.dumps(dict(address.good)).encode()
    place = rng.randrange(len(good))
    depth = rng.choice((250, 1000, 50_000))
    return BadRequest(
        address.path,
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
                json.dumps(_value(rng) if rng.random() < 0.5 else [dict(address.good)]).encode() + b" x",
                json.dumps(rng.choice((None, 42, "string", [123], [{}], True))).encode(),
            )
        ),
    )


def _wrong_door(rng: random.Random, address: Address) -> BadRequest:
    """The right body, with the wrong key, model, address, method or type."""
    sent = BadRequest(address.path, json.dumps(dict(address.good)).encode())
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
                {**address.good, "model": rng.choice(("nope", "cold:1b", "../etc", "a" * 5000, "\x00"))}
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


_KINDS_OF_ALL = (_wrong_type, _out_of_range, _missing, _broken_json, _wrong_door)
_KINDS = (*_KINDS_OF_ALL, _refused_option)


async def statuses(numbers: Iterable[int], home: Path) -> Counter[tuple[str, int]]:
    """Sends the requests and counts the answers by path and status. Raises ``AssertionError`` for a wrong one."""
    left = iter(numbers)
    seen: Counter[tuple[str, int]] = Counter()

    async def send_some(http: aiohttp.ClientSession, url: str) -> None:
        for number in left:
            sent = bad_request(number)
            options: dict[str, Any] = {
                "data": sent.body,
                "headers": sent.headers,
                "skip_auto_headers": ["Content-Type"],
            }
            async with http.request(sent.method, f"{url}{sent.path}", **options) as response:
                seen[sent.path, response.status] += 1
                _check(number, sent, response.status, await response.read())

    async with FakeRuntime() as runtime:
        settings = FacadeSettings(
            home=home, http="127.0.0.1:0", grpc="127.0.0.1:0", runtime=runtime.address, bootstrap_key=KEY
        )
        async with running(settings) as (host, port, _), aiohttp.ClientSession() as http:
            url = f"http://{host}:{port}"
            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(send_some(http, url))
            headers = {"Authorization": f"Bearer {KEY}"}
            for address in ADDRESSES:
                async with http.post(f"{url}{address.path}", json=dict(address.good), headers=headers) as response:
                    assert response.status == 200, address.path
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
    for (path, status), number in sorted(seen.items()):
        print(f"{number:7} {status} {path}")  # noqa: T201 - a command


if __name__ == "__main__":
    main()
