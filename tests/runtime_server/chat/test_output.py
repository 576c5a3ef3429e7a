"""Streams of text become content, reasoning and tool calls, however they are cut."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mantler.messages import FinishReason, NamedTool, ToolChoice, ToolChoiceMode
from runtime_server.chat.formats import HERMES, LLAMA, MISTRAL, CallFormat
from runtime_server.chat.output import ChatOutput
from runtime_server.chat.reasoning import ReasoningSplitter
from runtime_server.chat.tool_calls import MAX_HEAD_CHARS, ToolCallParser, call_ids

FORMS = {"hermes": HERMES, "llama": LLAMA, "mistral": MISTRAL}
Split = tuple[str, str, list[tuple[str, str]]]


def run(
    pieces: list[str], form: CallFormat, *, parallel: bool = True, think: bool = False, opened: bool = False
) -> Split:
    """Content, reasoning, and name and arguments of each call; checks what every stream of deltas must keep."""
    ids = (f"call_{i}" for i in itertools.count())
    parser = ToolCallParser(form, {"get", "put"}, parallel=parallel, ids=ids)
    output = ChatOutput(ReasoningSplitter(opened=opened) if think else None, parser)
    parts = [output.feed(piece) for piece in pieces] + [output.flush()]
    calls: list[tuple[str, str]] = []
    for delta in itertools.chain.from_iterable(part.tool_calls for part in parts):
        if delta.name is not None:
            assert (delta.index, delta.id, delta.arguments) == (len(calls), f"call_{len(calls)}", "")
            calls.append((delta.name, ""))
        else:
            assert (delta.index, delta.id) == (len(calls) - 1, None)
            calls[-1] = (calls[-1][0], calls[-1][1] + delta.arguments)
    return "".join(part.content for part in parts), "".join(part.reasoning for part in parts), calls


ARGUMENTS = '{"a": [1, {"b": "}\\"{"}],  "c": "é"}'


@pytest.mark.parametrize(
    ("name", "text", "content", "calls"),
    [
        ("hermes", '<tool_call>\n{"name": "get", "arguments": %}\n</tool_call>', "", ["get"]),
        ("hermes", 'Well. \n<tool_call>{"name":"get","arguments":%}</tool_call>\n', "Well.", ["get"]),
        (
            "hermes",
            '<tool_call>{"name":"get","arguments":%}</tool_call>\n<tool_call>{"name":"put","arguments":%}</tool_call>',
            "",
            ["get", "put"],
        ),
        ("hermes", '<tool_call>{"name":"get","arguments":%}</tool_call> Done.', " Done.", ["get"]),
        ("hermes", '<<tool_call>{"name":"get","arguments":%}', "<", ["get"]),
        ("llama", '{"name": "get", "parameters": %}', "", ["get"]),
        ("llama", '<|python_tag|>{"type": "function", "name": "get", "parameters": %}', "", ["get"]),
        ("llama", '{"name": "get", "parameters": %}; {"name": "put", "parameters": %}', "", ["get", "put"]),
        ("mistral", '[TOOL_CALLS] [{"name": "get", "arguments": %}]', "", ["get"]),
        ("mistral", '[TOOL_CALLS][{"name":"get","arguments":%,"id":"x"}, {"name":"put","arguments":%}]',
         "", ["get", "put"]),
    ],
)  # fmt: skip
def test_calls_are_found(name: str, text: str, content: str, calls: list[str]) -> None:
    text = text.replace("%", ARGUMENTS)
    expected = (content, "", [(call, ARGUMENTS) for call in calls])
    assert run([text], FORMS[name]) == run(list(text), FORMS[name]) == expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", '<tool_call>{"name": "other", "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "get"}</tool_call>'),
        ("hermes", '<tool_call>{"name": "get", "arguments": "{}"}</tool_call>'),
        ("hermes", "<tool_call>get</tool_call>"),
        ("hermes", " a <tool_cal"),
        ("hermes", "<tool_call>" + " " * MAX_HEAD_CHARS + '{"name": "get", "arguments": {}}</tool_call>'),
        ("llama", '{"name": "Bob", "parameters": {}}'),
        ("llama", 'It is {"name": "get", "parameters": {}}'),
        ("llama", "<|python_tag|>print(1)"),
        ("mistral", "[TOOL_CALLS]get"),
    ],
)
def test_what_is_no_call_is_content(name: str, text: str) -> None:
    assert run([text], FORMS[name]) == run(list(text), FORMS[name]) == (text, "", [])


def test_what_follows_a_call_that_is_not_closed_is_kept() -> None:
    text = '<tool_call>{"name": "get", "arguments": {}, oops'
    assert run(list(text), HERMES) == (", oops", "", [("get", "{}")])
    assert run(['<tool_call>{"name": "get", "arguments": {"a'], HERMES) == ("", "", [("get", '{"a')])


def test_without_parallel_calls_the_first_one_ends_the_output() -> None:
    text = '<tool_call>{"name":"get","arguments":{}}</tool_call><tool_call>{"name":"put","arguments":{}}</tool_call>x'
    assert run(list(text), HERMES, parallel=False) == ("", "", [("get", "{}")])


pieces_of_calls = st.sampled_from(
    ['<tool_call>', '</tool_call>', '{"name"', ': "get"', ': "no"', ', "arguments": ', ', "parameters": ', '{"a": 1}',
     '{', '}', '[', ']', '[TOOL_CALLS]', '<|python_tag|>', ';', ',', '"', '\\', ' ', '\n', 'x', '<think>', '</think>',
     '{"name": "get", "arguments": {"k": "v"}}', '{"name": "put", "parameters": {}}']
)  # fmt: skip
texts = st.lists(pieces_of_calls, max_size=12).map("".join)


@given(texts, st.sampled_from(sorted(FORMS)), st.booleans(), st.booleans(), st.booleans(), st.data())
def test_cutting_a_text_makes_no_difference(
    text: str, name: str, parallel: bool, think: bool, opened: bool, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
    form = FORMS[name]
    whole = run([text], form, parallel=parallel, think=think, opened=opened)
    assert run(pieces, form, parallel=parallel, think=think, opened=opened) == whole
    assert run(list(text), form, parallel=parallel, think=think, opened=opened) == whole


@given(texts, st.sampled_from(sorted(FORMS)))
@example('<tool_call>{"name"', "hermes")
def test_text_without_calls_is_content_to_the_last_character(text: str, name: str) -> None:
    content, _, calls = run(list(text), FORMS[name])
    if not calls:
        assert content == text


@given(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner)))
def test_arguments_are_exactly_the_models_text(value: object) -> None:
    arguments = json.dumps({"value": value}, ensure_ascii=False)
    text = f'<tool_call>{{"name": "get", "arguments": {arguments}}}</tool_call>'
    assert run(list(text), HERMES) == ("", "", [("get", arguments)])


@pytest.mark.parametrize(
    ("text", "opened", "reasoning", "content"),
    [
        ("<think>\nhm </think>\n\nYes.", False, "hm", "Yes."),
        ("hm</think>Yes.", True, "hm", "Yes."),
        ("<think></think>Yes.", False, "", "Yes."),
        ("Yes <think>no</think>", False, "", "Yes <think>no</think>"),
        ("<think>a < b </thin", False, "a < b </thin", ""),
        (" plain", False, "", " plain"),
        ("<thi", False, "", "<thi"),
    ],
)
def test_reasoning_is_kept_apart(text: str, opened: bool, reasoning: str, content: str) -> None:
    assert run(list(text), HERMES, think=True, opened=opened) == (content, reasoning, [])


def test_calls_in_reasoning_are_reasoning() -> None:
    call = '<tool_call>{"name":"get","arguments":{}}</tool_call>'
    assert run(list(f"<think>{call}</think>{call}"), HERMES, think=True) == ("", call, [("get", "{}")])


def test_tokens_of_reasoning_are_counted() -> None:
    output = ChatOutput(ReasoningSplitter(opened=False), None)
    for token in ("<think>", "a", " b", "</think>", "c", "d"):
        output.feed(token)
    assert output.reasoning_tokens == 3


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (ToolChoiceMode.AUTO, FinishReason.TOOL_CALLS),
        (ToolChoiceMode.REQUIRED, FinishReason.TOOL_CALLS),
        (NamedTool("get"), FinishReason.STOP),
    ],
)
def test_calls_that_the_model_chose_are_a_reason_to_finish(choice: ToolChoice, expected: FinishReason) -> None:
    output = ChatOutput(None, ToolCallParser(LLAMA, {"get"}, ids=call_ids(b"")), choice)
    assert output.finish_reason(FinishReason.STOP) is FinishReason.STOP
    output.feed('{"name": "get", "parameters": {}}')
    assert output.finish_reason(FinishReason.STOP) is expected
    assert output.finish_reason(FinishReason.LENGTH) is FinishReason.LENGTH


def test_call_ids_look_like_openais_and_belong_to_an_answer() -> None:
    made = list(itertools.islice(call_ids(b"an answer"), 3))
    assert len(set(made)) == 3
    for each in made:
        assert each.startswith("call_")
        assert each[5:].isalnum()
        assert len(each) == 29
    assert made == list(itertools.islice(call_ids(b"an answer"), 3))
    assert not set(made) & set(itertools.islice(call_ids(b"another"), 3))
