"""Chat completions over REST for end-to-end tests."""

from __future__ import annotations

import json
from typing import Any

import aiohttp

from tests.default_model import DEFAULT_MODEL
from tests.e2e.conftest import Mesh


class Rest:
    """A client of the mesh's facade."""

    def __init__(self, http: aiohttp.ClientSession, mesh: Mesh) -> None:
        self._http = http
        self._url = f"{mesh.url}/v1/chat/completions"
        self._headers = {"Authorization": f"Bearer {mesh.key}"}

    async def post(self, text: str = "", **fields: Any) -> tuple[int, Any]:
        """Status and JSON of a completion. ``text`` is the user's message, unless there are ``messages``."""
        async with self._http.post(self._url, json=_body(text, fields), headers=self._headers) as response:
            return response.status, await response.json()

    async def answer(self, text: str = "", **fields: Any) -> dict[str, Any]:
        """A completion that goes well."""
        status, body = await self.post(text, **fields)
        assert status == 200, body
        made: dict[str, Any] = body
        return made

    async def chunks(self, text: str = "", **fields: Any) -> list[dict[str, Any]]:
        """The chunks of a stream that goes well."""
        sent = {**_body(text, fields), "stream": True}
        async with self._http.post(self._url, json=sent, headers=self._headers) as response:
            raw = await response.text()
        assert response.status == 200, raw
        data = [block.removeprefix("data: ") for block in raw.split("\n\n") if block.startswith("data: ")]
        assert data.pop() == "[DONE]", raw
        return [json.loads(each) for each in data]


def content(completion: dict[str, Any], index: int = 0) -> str:
    """The text of a choice."""
    text = completion["choices"][index]["message"]["content"]
    assert isinstance(text, str)
    return text


def _body(text: str, fields: dict[str, Any]) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": DEFAULT_MODEL, "messages": messages, "temperature": 0, "max_tokens": 32, **fields}
