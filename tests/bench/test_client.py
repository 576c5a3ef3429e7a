"""Streams as servers write them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from bench.client import read
from bench.openvino_server import whole
from bench.stream import Stream


def chunk(text: str) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": text}}]}


USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}


async def lines(*events: object, end: str = "data: [DONE]") -> AsyncIterator[bytes]:
    for event in events:
        yield b": ping\n"
        yield b"data: " + json.dumps(event).encode() + b"\n"
        yield b"\n"
    yield end.encode() + b"\n"


async def test_pieces_and_usage_are_taken() -> None:
    stream, firsts = Stream(0.0), list[int]()
    events = (chunk(""), chunk("a"), chunk("b"), {"choices": [], "usage": USAGE})
    await read(lines(*events), stream, lambda: firsts.append(len(stream.pieces)))
    assert (len(stream.pieces), stream.prompt_tokens, stream.cached_tokens, stream.tokens) == (2, 7, 4, 2)
    assert firsts == [1], "told once, at the first piece"
    assert stream.error == ""


@pytest.mark.parametrize("size", [1, 2, 7, 50, 10_000])
async def test_blocks_may_end_anywhere(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"".join([line async for line in lines(chunk(""), chunk("a"), chunk("é"), {"choices": [], "usage": USAGE})])
    blocks = [data[at : at + size] for at in range(0, len(data), size)]
    monkeypatch.setattr("bench.client.time.perf_counter", iter(range(len(blocks))).__next__)

    async def read_blocks() -> AsyncIterator[bytes]:
        for block in blocks:
            yield block

    stream, firsts = Stream(0.0), list[int]()
    await read(read_blocks(), stream, lambda: firsts.append(len(stream.pieces)))
    ends = [data.index(b"\n", data.index(text)) for text in (b'"a"', b'"\\u00e9"')]
    assert stream.pieces == [end // size for end in ends], "each when its line was whole"
    assert (stream.tokens, stream.error, len(firsts)) == (2, "", 1)


@pytest.mark.parametrize(
    ("events", "end", "error"),
    [([chunk("a")], "", "stream cut off"), ([chunk("a"), {"error": {"code": "internal_error"}}], "", "error event")],
)
async def test_bad_ends(events: list[object], end: str, error: str) -> None:
    stream = Stream(0.0)
    await read(lines(*events, end=end), stream, lambda: None)
    assert stream.error == error


@pytest.mark.parametrize("text", ["plain", "é", "€", "a🜁"])
def test_characters_wait_for_their_last_byte(text: str) -> None:
    data, out, held = text.encode(), "", b""
    for byte in data:
        made, held = whole(held + bytes([byte]))
        out += made
    assert (out, held) == (text, b"")


def test_bytes_that_are_no_text_are_replaced() -> None:
    assert whole(b"a\xff\xff\xff\xffb") == ("a\ufffd\ufffd\ufffd\ufffdb", b"")
