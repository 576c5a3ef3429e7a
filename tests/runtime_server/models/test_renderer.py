"""Chat templates in their process: hostile ones, broken ones, and that honest ones are none the worse for it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mantler.errors import ErrorCode, MantlerError
from mantler.messages import ChatMessage, ChatPrompt, Role, Tool, ToolCall
from runtime_server.models.errors import PullError
from runtime_server.models.renderer import MAX_WAITING_RENDERS, RENDER_BOUNDS, Renderer, check_template
from runtime_server.models.template import MAX_SOURCE_CHARS, ChatTemplate
from runtime_server.models.vocabulary import StoredTemplate
from tests import golden
from tests.tiny_models import TEMPLATE

START_TICKS = os.sysconf("SC_CLK_TCK")
HELLO = ChatPrompt((ChatMessage(Role.USER, "hello"),))
ATTACK = ChatPrompt((ChatMessage(Role.USER, "attack"),))
EVERYTHING = """
{%- for m in messages %}[{{ m.role }}|{{ m.content }}|{{ m.name }}|{{ m.tool_call_id }}|{{ m.reasoning_content }}]
{%- for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}{% endfor %}
{%- endfor %}{{ 'a <b>c' | wordwrap(1) | striptags }}{{ [1] | pprint }}{{ lipsum(1) | length > 9 }}
{{- strftime_now('%Y') }}{{ tools | tojson }}{{ mood | tojson }}{{ bos_token }}"""

HOSTILE = {
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops that write": "{% for i in range(99999) %}{% for j in range(99999) %}{{ '' }}{% endfor %}{% endfor %}",
    "doubling with ~": (
        "{% set n = namespace(s='xxxxxxxx') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}"
    ),
    "doubling with +": (
        "{% set n = namespace(s='xxxxxxxx') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}"
    ),
    "doubling lists": "{% set n = namespace(s=[0]) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "branching macros": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a recursive macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a recursive loop": "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "a wide number": "{{ '%1000000000d' % messages | length }}",
    "a wide format": "{{ '{:>4000000000}'.format(messages | length) }}",
    "a wide filter": "{{ messages[0].content | center(10**9) }}",
    "an indented text": "{% set n = 'x\\n' * 400000 %}{{ n | indent(100000) | length }}",
    "a long join": "{{ range(99999) | join('x' * 900000) }}",
    "a big JSON": (
        "{% set n = namespace(s=['x']) %}{% for i in range(40) %}{% set n.s = [n.s, n.s] %}{% endfor %}"
        "{{ n.s | tojson }}"
    ),
    "a big representation": (
        "{% set n = namespace(s=['x']) %}{% for i in range(60) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s }}"
    ),
    "batches": "{{ range(2) | batch(10**10, 'x') | list | length }}",
    "slices": "{{ range(2) | slice(10**10) | list | length }}",
    "a long range": "{% for i in range(99999) %}{% for x in range(99999) | list %}{% endfor %}{% endfor %}",
    "replacements": "{% set n = 'x' * 900000 %}{{ n.replace('x', n) | length }}",
    "a product of numbers": (
        "{% set n = namespace(i=3) %}{% for i in range(60) %}{% set n.i = n.i * n.i %}{% endfor %}{{ n.i }}"
    ),
    "a sorted sum": "{{ range(99999) | map('string') | sum(start='x') }}",
    "words to wrap": (
        "{{ ('x ' * 400000) | wordwrap(1) | urlize | striptags | length }}{% for i in range(99999) %}"
        "{{ ('x ' * 400000) | wordcount }}{% endfor %}"
    ),
    "lorem ipsum": "{{ lipsum(n=99999, html=False) }}",
    "deep nesting of values": (
        "{% set n = namespace(s=[]) %}{% for i in range(99999) %}{% set n.s = [n.s] %}{% endfor %}{{ n.s | tojson }}"
    ),
    "a long refusal": (
        "{% set n = namespace(s='xxxxxxxx') %}{% for i in range(20) %}{% set n.s = n.s ~ n.s %}{% endfor %}"
        "{{ raise_exception(n.s) }}"
    ),
    "a door in an attribute": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a door in a filter": (
        "{{ messages | attr('__class__') | attr('__base__') }}{{ cycler.__init__.__globals__.os.environ }}"
    ),
    "a door in a format": "{{ '{0.__class__.__init__.__globals__}'.format(cycler) }}",
    "an import": "{% include '/etc/passwd' %}",
}


UNREADABLE = {
    "no syntax": "{% if %}",
    "folded": "{{ 'x' | center(90000000) | wordcount }}" * 500,
    "parentheses": "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "lists": "{{ " + "[" * 2_000 + "1" + "]" * 2_000 + " }}",
    "blocks": "{% if 1 %}" * 3_000 + "{% endif %}" * 3_000,
    "loops": "{% for i in messages %}" * 50 + "{% endfor %}" * 50,
    "operators": "{{ " + "not " * 60_000 + "1 }}",
    "too long": "x" * (MAX_SOURCE_CHARS + 1),
}


def stored(source: str) -> StoredTemplate:
    return StoredTemplate(source, {"bos_token": "<s>"})


@asynccontextmanager
async def rendering(source: str) -> AsyncIterator[Renderer]:
    renderer = Renderer(stored(source))
    try:
        yield renderer
    finally:
        await renderer.close()
    assert list(children()) == []


def children() -> Iterator[int]:
    """Processes of this one that run a template, zombies included."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            name_end = (text := status.read_text()).rindex(")")
            command = (status.parent / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, parent = text[name_end + 2 :].split()[:2]
        if int(parent) == os.getpid() and (state == "Z" or b"template_process" in command):
            yield int(status.parent.name)


@pytest.mark.parametrize("attack", HOSTILE.values(), ids=HOSTILE)
async def test_hostile_templates_are_a_400_and_the_next_request_works(attack: str) -> None:
    source = "{% if messages[0].content == 'attack' %}" + attack + "{% else %}{{ messages[0].content }}{% endif %}"
    async with rendering(source) as renderer:
        await renderer.start()
        started = time.monotonic()
        with pytest.raises(MantlerError) as refused:
            await renderer.render(ATTACK)
        assert time.monotonic() - started < RENDER_BOUNDS.timeout_s + 5
        assert (refused.value.code, refused.value.param) == (ErrorCode.INVALID_PARAMETER, "messages")
        assert len(refused.value.message) < 1200
        assert await renderer.render(HELLO) == "hello"


@pytest.mark.parametrize("source", UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_compiled_cannot_be_pulled(source: str) -> None:
    started = time.monotonic()
    with pytest.raises(PullError, match="chat template"):
        check_template(stored(source))
    assert time.monotonic() - started < RENDER_BOUNDS.timeout_s + 20


async def test_a_template_is_told_of_when_the_process_starts() -> None:
    async with rendering("{% if %}") as renderer:
        with pytest.raises(PullError, match="cannot be read"):
            await renderer.start()


async def test_one_process_renders_until_it_dies_and_another_after_it() -> None:
    async with rendering(TEMPLATE) as renderer:
        await renderer.start()
        (first,) = children()
        text = await renderer.render(HELLO)
        assert list(children()) == [first]
        os.kill(first, 9)
        # Whether its end has been noticed yet or not, a request is answered at the latest at the second try.
        try:
            again = await renderer.render(HELLO)
        except MantlerError:
            again = await renderer.render(HELLO)
        assert again == text
        assert list(children()) != [first]


async def test_an_answer_to_a_caller_who_left_is_not_the_next_ones() -> None:
    slow = "{% if messages[0].content == 'attack' %}" + HOSTILE["nested loops"] + "{% endif %}{{ messages[0].content }}"
    async with rendering(slow) as renderer:
        await renderer.start()
        (first,) = children()
        asked = asyncio.create_task(renderer.render(ATTACK))
        await asyncio.to_thread(until_busy, first)
        waiting = asyncio.create_task(renderer.render(HELLO))
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert await waiting == "hello"
        assert first not in children()


def until_busy(pid: int) -> None:
    """Returns when the process has worked for longer than a start takes."""
    while cpu_ticks(pid) < START_TICKS:
        os.sched_yield()


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11])


async def test_callers_in_turn_get_their_own_answers() -> None:
    async with rendering("{{ messages[0].content }}") as renderer:
        texts = [f"text {i}" for i in range(50)]
        made = await asyncio.gather(*(renderer.render(ChatPrompt((ChatMessage(Role.USER, t),))) for t in texts))
        assert made == texts


async def test_too_many_who_wait_are_refused_at_once() -> None:
    async with rendering("{{ messages[0].content }}") as renderer:
        tasks = [asyncio.create_task(renderer.render(HELLO)) for _ in range(MAX_WAITING_RENDERS + 3)]
        made = await asyncio.gather(*tasks, return_exceptions=True)
        refused = [error for error in made if isinstance(error, MantlerError)]
        assert [error.code for error in refused] == [ErrorCode.RUNTIME_UNAVAILABLE] * 3
        assert made.count("hello") == MAX_WAITING_RENDERS


async def test_closing_ends_a_render_and_refuses_those_that_wait() -> None:
    async with rendering(HOSTILE["nested loops"]) as renderer:
        await renderer.start()
        (pid,) = children()
        tasks = [asyncio.create_task(renderer.render(HELLO)) for _ in range(3)]
        await asyncio.to_thread(until_busy, pid)
        started = time.monotonic()
        await renderer.close()
        assert time.monotonic() - started < RENDER_BOUNDS.timeout_s / 2
        made = await asyncio.gather(*tasks, return_exceptions=True)
        codes = [error.code for error in made if isinstance(error, MantlerError)]
        assert codes == [ErrorCode.RUNTIME_UNAVAILABLE] * 3


async def test_no_descriptor_is_left_behind() -> None:
    async with rendering("{{ messages[0].content }}") as renderer:
        await renderer.render(HELLO)
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        async with rendering("{{ 'x' * messages[0].content | length }}" + HOSTILE["doubling with ~"]) as renderer:
            with pytest.raises(MantlerError):
                await renderer.render(HELLO)
    assert len(os.listdir("/proc/self/fd")) <= len(before)


async def test_the_process_sees_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANTLER_BOOTSTRAP_KEY", "a-secret-of-the-parent")
    secret = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(secret, True)
    try:
        async with rendering("{{ messages[0].content }}") as renderer:
            await renderer.render(HELLO)
            (pid,) = children()
            process = Path("/proc", str(pid))
            assert b"secret" not in (process / "environ").read_bytes()
            assert sorted(os.listdir(process / "fd")) == ["0", "1", "2"]
            assert os.readlink(process / "fd" / "2") == os.devnull
            limits = {
                line[:26].strip(): line[26:].split()[:2] for line in (process / "limits").read_text().splitlines()
            }
            assert limits["Max open files"] == ["3", "3"]
            for name in ("Max file size", "Max processes", "Max core file size"):
                assert limits[name] == ["0", "0"]
            assert "NoNewPrivs:\t1" in (process / "status").read_text()
    finally:
        os.close(secret)


async def test_long_conversations_have_more_time_and_memory() -> None:
    turn = ChatMessage(Role.USER, "é" * 1000)
    prompt = ChatPrompt((turn,) * 8192)
    async with rendering(TEMPLATE) as renderer:
        assert len(await renderer.render(prompt)) > 8_192_000


@pytest.mark.model
async def test_golden_conversations_are_the_same(smollm2_template: StoredTemplate) -> None:
    renderer = Renderer(smollm2_template)
    try:
        for conversation in golden.conversations():
            assert await renderer.render(ChatPrompt(conversation.messages)) == conversation.prompt
    finally:
        await renderer.close()


EXACT = 2**53 - 1  # numbers travel as doubles
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-EXACT, EXACT) | st.floats(-EXACT, EXACT) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
TEXT = st.text(st.characters(), max_size=40)  # lone surrogates included
CALLS = st.builds(ToolCall, TEXT, TEXT, st.sampled_from(["", "{}", '{"a": [1]}', "["]))
TOOLS = st.builds(Tool, st.just("get"), st.none() | TEXT, st.sampled_from([None, "{}", "["]))
MESSAGES = st.builds(
    ChatMessage,
    st.sampled_from(Role),
    st.none() | TEXT,
    name=st.none() | TEXT,
    tool_calls=st.lists(CALLS, max_size=2).map(tuple),
    tool_call_id=st.none() | TEXT,
    reasoning=st.none() | TEXT,
)
PROMPTS = st.builds(
    ChatPrompt,
    st.lists(MESSAGES, min_size=1, max_size=4).map(tuple),
    st.lists(TOOLS, max_size=1).map(tuple),
    template_variables=st.dictionaries(st.sampled_from(["mood", "messages", "tools"]), JSON, max_size=3),
)


@pytest.mark.parametrize("source", [EVERYTHING, TEMPLATE], ids=["everything", "plain"])
def test_any_conversation_is_rendered_as_without_the_process(source: str) -> None:
    template = ChatTemplate(source, {"bos_token": "<s>"})

    def directly(prompt: ChatPrompt) -> tuple[str, str | None]:
        try:
            return template.render(prompt.messages, prompt.tools, prompt.template_variables), None
        except MantlerError as error:
            return error.message, error.param

    async def in_process(renderer: Renderer, prompt: ChatPrompt) -> tuple[str, str | None]:
        try:
            return await renderer.render(prompt), None
        except MantlerError as error:
            return error.message, error.param

    with asyncio.Runner() as runner:
        renderer = Renderer(stored(source))

        @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(prompt=PROMPTS)
        def compare(prompt: ChatPrompt) -> None:
            assert runner.run(in_process(renderer, prompt)) == directly(prompt)

        try:
            compare()
        finally:
            runner.run(renderer.close())
