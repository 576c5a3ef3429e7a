"""What a user of the openai package does. Prints what it saw as JSON; run by test_openai_python.py."""

from __future__ import annotations

import json
import sys
from typing import Any, Literal

import openai
from pydantic import BaseModel

ENDLESS = {"ignore_eos": True}
"""Makes a stream that would not end while a test looks at it."""
FOUR_LETTERS = {"regex": "[a-z]{4}"}
"""Ends an answer with ``stop``: the SDK's helper for streams raises for ``length``."""
WEATHER = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
CALL_AND_RESULT = [
    {"role": "assistant", "tool_calls": [WEATHER]},
    {"role": "tool", "tool_call_id": "call_1", "content": "Sunny."},
]
"""The end of a conversation that began elsewhere, with a call."""


CITIES = ("Paris", "Rome")
ARGUMENTS = {
    "type": "object",
    "properties": {"city": {"enum": list(CITIES)}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": ARGUMENTS}}


class City(BaseModel):
    """What a structured output is asked to be. Its answers are short whatever the model says."""

    size: Literal["small", "large"]
    coastal: bool


def main() -> None:
    given: dict[str, str] = json.loads(sys.argv[1])
    client = _client(given["url"], given["key"])
    messages: Any = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    asked: dict[str, Any] = {"model": given["model"], "messages": messages, "temperature": 0, "max_tokens": 40}
    seen: dict[str, Any] = {"version": openai.__version__}
    seen["models"] = [model.id for model in client.models.list()]
    _answers(client, asked, seen)
    _options(client, asked, seen)
    _tools(client, asked, seen)
    _errors(client, given, asked, seen)
    print(json.dumps(seen))  # noqa: T201 - this is the script's result


def _answers(client: openai.OpenAI, asked: dict[str, Any], seen: dict[str, Any]) -> None:
    """The same answer in all the ways in which the SDK gives it."""
    answer = client.chat.completions.create(**asked)
    seen["chat"] = answer.choices[0].finish_reason
    text, tokens = "", None
    for chunk in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        tokens = chunk.usage.total_tokens if chunk.usage else tokens
    seen["stream_is_the_chat"] = text == answer.choices[0].message.content
    seen["stream_usage"] = answer.usage is not None and tokens == answer.usage.total_tokens
    with client.chat.completions.stream(**asked) as stream:
        seen["stream_helper"] = stream.get_final_completion().choices[0].message.content == text
    raw = client.chat.completions.with_raw_response.create(**asked)
    seen["raw"] = [raw.status_code, raw.request_id == raw.headers["x-request-id"]]
    seen["raw_is_the_chat"] = raw.parse().choices == answer.choices
    with client.chat.completions.create(**{**asked, "max_tokens": 4000}, stream=True, extra_body=ENDLESS) as cut:
        seen["abort"] = next(iter(cut)).choices[0].delta.role
    seen["after_abort"] = client.chat.completions.create(**asked).choices == answer.choices


def _options(client: openai.OpenAI, asked: dict[str, Any], seen: dict[str, Any]) -> None:
    history = {**asked, "messages": [*asked["messages"], *CALL_AND_RESULT]}
    seen["call_in_history"] = bool(client.chat.completions.create(**history).choices[0].message.content)
    parsed = client.chat.completions.parse(**asked, response_format=City).choices[0].message.parsed
    seen["parse"] = isinstance(parsed, City)
    with client.chat.completions.stream(**asked, response_format=City) as stream:
        seen["stream_parse"] = stream.get_final_completion().choices[0].message.parsed == parsed
    drawing = {**asked, "temperature": 1, "seed": 7, "n": 2, "logprobs": True, "top_logprobs": 2}
    drawn = client.chat.completions.create(**drawing, extra_body=FOUR_LETTERS)
    with client.chat.completions.stream(**drawing, extra_body=FOUR_LETTERS) as stream:
        streamed = stream.get_final_completion()
    seen["n"] = [choice.index for choice in drawn.choices]
    seen["logprobs"] = [_fits(choice) for choice in drawn.choices]
    seen["stream_n"] = [choice.message.content for choice in streamed.choices] == [
        choice.message.content for choice in drawn.choices
    ]
    seen["stream_logprobs"] = [_fits(choice) for choice in streamed.choices]


def _tools(client: openai.OpenAI, asked: dict[str, Any], seen: dict[str, Any]) -> None:
    forced = {**asked, "tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    choice = client.chat.completions.create(**forced).choices[0]
    call = (choice.message.tool_calls or [])[0]
    arguments = json.loads(call.function.arguments)
    seen["tools"] = [choice.finish_reason, choice.message.content, call.function.name, arguments["city"] in CITIES]
    with client.chat.completions.stream(**forced) as stream:
        streamed = (stream.get_final_completion().choices[0].message.tool_calls or [])[0]
    seen["stream_tools"] = [streamed.function.name, json.loads(streamed.function.arguments) == arguments]
    named = {**forced, "tool_choice": {"type": "function", "function": {"name": "weather"}}}
    seen["named_tool"] = client.chat.completions.create(**named).choices[0].finish_reason
    tool = openai.pydantic_function_tool(City)
    parsed = client.chat.completions.parse(**{**forced, "tools": [tool]}).choices[0].message.tool_calls or ()
    seen["parse_tool"] = [isinstance(each.function.parsed_arguments, City) for each in parsed]
    result = {"role": "tool", "tool_call_id": call.id, "content": "Sunny."}
    history = [*asked["messages"], choice.message, result]
    answer = client.chat.completions.create(**{**asked, "messages": history, "tools": [TOOL]}).choices[0]
    seen["tool_result"] = bool(answer.message.content or answer.message.tool_calls)


def _fits(choice: Any) -> bool:
    """Whether the log probabilities of a choice are those of its text."""
    entries = choice.logprobs.content
    spelled = b"".join(bytes(entry.bytes) for entry in entries).decode()
    return spelled == choice.message.content and all(
        entry.logprob <= 0 and len(entry.top_logprobs) == 2 for entry in entries
    )


def _errors(client: openai.OpenAI, given: dict[str, str], asked: dict[str, Any], seen: dict[str, Any]) -> None:
    seen["400"] = _error(client, {**asked, "temperature": 7})
    seen["400 schema"] = _error(client, {**asked, "response_format": _schema({"type": "strin"})})
    seen["400 tool"] = _error(client, {**asked, "tools": [{"type": "function", "function": {"name": "a b"}}]})
    seen["400 stream"] = _error(client, {**asked, "stream": True, "top_logprobs": 21, "logprobs": True})
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


def _schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}


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
