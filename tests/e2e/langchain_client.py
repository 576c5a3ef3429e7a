"""What a user of langchain-openai does. Prints what it saw as JSON; run by test_langchain.py."""

from __future__ import annotations

import json
import sys
from typing import Any, Literal

import openai
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

QUESTION = "What is the capital of France? Answer in one word."


class City(BaseModel):
    """What a structured output is asked to be. Its answers are short whatever the model says."""

    size: Literal["small", "large"]
    coastal: bool


def main() -> None:
    given: dict[str, str] = json.loads(sys.argv[1])
    chat = _chat(given, temperature=0)
    seen: dict[str, Any] = {}
    answer = chat.invoke(QUESTION)
    seen["chat"] = [answer.response_metadata["finish_reason"], answer.response_metadata["model_name"]]
    seen["batch"] = [each.content == answer.content for each in chat.batch([QUESTION, QUESTION])]
    whole, *parts = chat.stream(QUESTION)
    for part in parts:
        whole += part
    seen["stream_is_the_chat"] = whole.content == answer.content
    seen["stream_usage"] = whole.usage_metadata["total_tokens"] == answer.usage_metadata["total_tokens"]
    seen["logprobs"] = _spelled(chat.bind(logprobs=True).invoke(QUESTION)) == answer.content

    city = chat.with_structured_output(City, method="json_schema").invoke(QUESTION)
    seen["structured"] = isinstance(city, City)
    seen["structured_dict"] = isinstance(
        chat.with_structured_output(City.model_json_schema(), method="json_schema", strict=True).invoke(QUESTION), dict
    )
    drawn = _chat(given, temperature=1, seed=7, n=2).generate([[HumanMessage(QUESTION)]])
    seen["n"] = [len(drawn.generations[0]), drawn.llm_output["token_usage"]["completion_tokens"] > 0]
    call = AIMessage("", tool_calls=[{"id": "call_1", "name": "weather", "args": {"city": "Paris"}}])
    seen["call_in_history"] = bool(
        chat.invoke([("user", QUESTION), call, ToolMessage("Sunny.", tool_call_id="call_1")]).content
    )
    calls = chat.bind_tools([City], tool_choice="any").invoke(QUESTION).tool_calls
    seen["tools"] = [[call["name"], isinstance(City(**call["args"]), City)] for call in calls][:1]
    by_call = chat.with_structured_output(City, method="function_calling")
    seen["structured_by_call"] = isinstance(by_call.invoke(QUESTION), City)
    seen["history"] = chat.invoke([("system", "Be brief."), ("user", QUESTION), answer, ("user", "Why?")]).type

    seen["400"] = _error(_chat(given, temperature=7))
    seen["401"] = _error(_chat({**given, "key": "mk_live_nosuchkeynosuchkeynosuchkey00"}))
    seen["404"] = _error(_chat({**given, "model": "no:such"}))
    slow = _chat({**given, "key": given["slow_key"]})
    slow.invoke(QUESTION)
    seen["429"] = _error(slow)
    print(json.dumps(seen))  # noqa: T201 - this is the script's result


def _chat(given: dict[str, str], **settings: Any) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=f"{given['url']}/v1",
        api_key=given["key"],
        model=given["model"],
        max_tokens=40,
        max_retries=0,
        stream_usage=True,
        **settings,
    )


def _spelled(answer: Any) -> str:
    """The text that the log probabilities are of."""
    entries = answer.response_metadata["logprobs"]["content"]
    return b"".join(bytes(entry["bytes"]) for entry in entries).decode()


def _error(chat: ChatOpenAI) -> list[str | None]:
    try:
        chat.invoke(QUESTION)
    except openai.APIStatusError as error:
        # LangChain has classes of its own that inherit the SDK's.
        return [
            next(each.__name__ for each in type(error).mro() if each.__module__ == "openai"),
            error.param,
            error.code,
        ]
    return ["no error"]


if __name__ == "__main__":
    main()
