"""What a user of the openai package does. Prints what it saw as JSON; run by test_openai_python.py."""

from __future__ import annotations

import json
import sys
from typing import Any

import openai


def main() -> None:
    given: dict[str, str] = json.loads(sys.argv[1])
    client = _client(given["url"], given["key"])
    messages: Any = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    asked: dict[str, Any] = {"model": given["model"], "messages": messages, "temperature": 0, "max_tokens": 40}
    seen: dict[str, Any] = {"version": openai.__version__}

    seen["models"] = [model.id for model in client.models.list()]
    answer = client.chat.completions.create(**asked)
    seen["chat"] = answer.choices[0].finish_reason
    text, usage = "", None
    for chunk in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    seen["stream_is_the_chat"] = text == answer.choices[0].message.content
    seen["stream_usage"] = usage == answer.usage

    seen["400"] = _error(client, {**asked, "temperature": 7})
    seen["401"] = _error(_client(given["url"], "mk_live_nosuchkeynosuchkeynosuchkey00"), asked)
    seen["403"] = _error(_client(given["url"], given["other_model_key"]), asked)
    seen["404"] = _error(client, {**asked, "model": "no:such"})
    slow = _client(given["url"], given["slow_key"])
    slow.chat.completions.create(**{**asked, "max_tokens": 1})
    seen["429"] = _error(slow, asked)
    try:
        slow.chat.completions.create(**asked)
    except openai.RateLimitError as error:
        seen["429 retry-after"] = 1 <= int(error.response.headers["retry-after"]) <= 60
    seen["503"] = _error(_client(given["dead_url"], given["key"]), asked)
    print(json.dumps(seen))  # noqa: T201 - this is the script's result


def _client(url: str, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


def _error(client: openai.OpenAI, asked: dict[str, Any]) -> list[str | None]:
    try:
        client.chat.completions.create(**asked)
    except openai.APIStatusError as error:
        return [type(error).__name__, error.param, error.code]
    return ["no error"]


if __name__ == "__main__":
    main()
