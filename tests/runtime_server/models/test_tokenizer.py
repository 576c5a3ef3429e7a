"""Tokenizers of both formats, and chat templates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mantler.errors import ErrorCode, MantlerError
from mantler.messages import ChatMessage, ChatPrompt, Role
from runtime_server.models.errors import PullError
from runtime_server.models.renderer import Renderer
from runtime_server.models.source import open_source
from runtime_server.models.template import MAX_TEMPLATE_CHARS, ChatTemplate
from runtime_server.models.tokenizer import Tokenizer
from tests import golden
from tests.tiny_models import SPECIAL, TOKENS, TOOL_ID, tiny_config, write_folder, write_gguf

LLAMA = tiny_config("llama")
HELLO = ChatPrompt((ChatMessage(Role.USER, "hello"),))


def encoded(tokenizer: Tokenizer, prompt: ChatPrompt) -> list[int]:
    return tokenizer.encode_chat(rendered(tokenizer, prompt))


def rendered(tokenizer: Tokenizer, prompt: ChatPrompt) -> str:
    assert tokenizer.template is not None
    return ChatTemplate(tokenizer.template.source, tokenizer.template.special_tokens).render(prompt.messages)


def stored(path: Path, folder: Path) -> Tokenizer:
    """The tokenizer of the model at ``path``, stored and loaded again."""
    folder.mkdir(exist_ok=True)
    open_source(path).tokenizer.save(folder)
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tiny")
    return stored(write_gguf(folder / "m.gguf", LLAMA), folder / "stored")


def test_gguf_and_folder_give_the_same_tokenizer(tmp_path: Path, tiny: Tokenizer) -> None:
    other = stored(write_folder(tmp_path / "m", LLAMA), tmp_path / "stored")
    for text in ("hello world", "  <|im_end|>x<tool>", "héé 漢字\n"):
        assert tiny.encode(text) == other.encode(text)
    assert encoded(tiny, HELLO) == encoded(other, HELLO)
    assert tiny.token_bytes == other.token_bytes
    assert tiny.eos_ids == other.eos_ids == {0, 2}


@given(text=st.text())
def test_token_bytes_spell_any_text(tiny: Tokenizer, text: str) -> None:
    for token in SPECIAL:
        text = text.replace(token, "")
    assert b"".join(tiny.token_bytes[i] for i in tiny.encode(text)) == text.encode()


def test_control_tokens_have_no_bytes_and_other_added_tokens_do(tiny: Tokenizer) -> None:
    assert tiny.vocab_size == len(TOKENS)
    assert tiny.token_bytes[:3] == [b"", b"", b""]
    assert tiny.token_bytes[TOOL_ID] == b"<tool>"
    assert tiny.encode("<|im_end|><tool>") == [2, TOOL_ID]


@given(text=st.text())
def test_decoding_gives_the_text_back_with_its_control_tokens(tiny: Tokenizer, text: str) -> None:
    text += SPECIAL[1]
    assert tiny.decode(tiny.encode(text)) == text


def test_a_bos_is_added_only_where_the_model_has_it_so(tmp_path: Path, tiny: Tokenizer) -> None:
    with_bos = write_gguf(tmp_path / "m.gguf", LLAMA, fields={"tokenizer.ggml.add_bos_token": True})
    tokenizer = stored(with_bos, tmp_path / "stored")
    assert tokenizer.encode("hello") == [1, *tiny.encode("hello")]
    assert encoded(tokenizer, HELLO) == encoded(tiny, HELLO)


def test_a_vocabulary_padded_by_the_model_has_bytes_for_every_id(tmp_path: Path) -> None:
    padded = replace(LLAMA, vocab_size=len(TOKENS) + 5)
    tokenizer = stored(write_folder(tmp_path / "m", padded), tmp_path / "stored")
    assert tokenizer.vocab_size == len(TOKENS) + 5
    assert tokenizer.token_bytes[-5:] == [b""] * 5


def test_sentencepiece_vocabularies_become_merges(tmp_path: Path) -> None:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    plain = ["▁", "h", "e", "l", "o", "he", "ll", "▁h", "hell", "hello", "▁hello", "lo"]
    scores = [0.0] * len(pieces) + [-9.0, -9.1, -9.2, -9.3, -9.4, -1.0, -2.0, -6.0, -3.0, -4.0, -5.0, -7.0]
    fields = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": None,
        "tokenizer.ggml.tokens": [*pieces, *plain],
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(plain)],
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": None,
    }
    config = replace(LLAMA, vocab_size=len(pieces) + len(plain))
    tokenizer = stored(write_gguf(tmp_path / "m.gguf", config, fields=fields), tmp_path / "stored")
    names = [*pieces, *plain]
    assert [names[i] for i in tokenizer.encode("hello")] == ["<s>", "▁hello"]
    assert [names[i] for i in tokenizer.encode("lol")] == ["<s>", "▁", "lo", "l"]
    assert [names[i] for i in tokenizer.encode("é")] == ["<s>", "▁", "<0xC3>", "<0xA9>"]
    assert b"".join(tokenizer.token_bytes[i] for i in tokenizer.encode("hello é")) == " hello é".encode()
    assert tokenizer.eos_ids == {2}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokenizer.ggml.pre": "chatglm-bpe"}, "'chatglm-bpe' is not supported"),
        ({"tokenizer.ggml.pre": None}, "does not say how its tokenizer cuts text"),
        ({"tokenizer.ggml.model": "bert"}, "'bert' are not supported"),
        ({"tokenizer.ggml.merges": ["h e", "q x"]}, "a merge names tokens"),
        ({"tokenizer.ggml.merges": ["he"]}, "a merge is not two tokens"),
        ({"tokenizer.ggml.token_type": [1, 2]}, "one type per token"),
        ({"tokenizer.ggml.eos_token_id": 10**6}, "eos_token_id is 1000000"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "holds a token twice"),
    ],
)
def test_tokenizers_that_cannot_be_right_are_refused(tmp_path: Path, fields: dict[str, object], message: str) -> None:
    with pytest.raises(PullError, match=message):
        open_source(write_gguf(tmp_path / "m.gguf", LLAMA, fields=fields))


def test_damaged_stored_tokenizers_are_refused(tmp_path: Path) -> None:
    stored(write_gguf(tmp_path / "m.gguf", LLAMA), tmp_path)
    (tmp_path / "vocabulary.json").write_text("{}")
    with pytest.raises(PullError, match="stored tokenizer is damaged"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(PullError, match=r"tokenizer\.json is damaged"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(PullError, match=r"lacks tokenizer\.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("where", ["chat_template.jinja", "chat_template.json", "a list"])
def test_templates_are_found_where_models_keep_them(tmp_path: Path, where: str) -> None:
    folder = write_folder(tmp_path / "m", LLAMA)
    template = "{{ messages[0].content }}!\r\n"
    if where == "a list":
        named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": template}]
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    elif where == "chat_template.json":
        (folder / where).write_text(json.dumps({"chat_template": template}))
    else:
        (folder / where).write_bytes(template.encode())
    assert rendered(stored(folder, tmp_path / "stored"), HELLO).startswith("hello!")


async def test_a_model_without_a_template_takes_no_chat(tmp_path: Path) -> None:
    bare = write_gguf(tmp_path / "m.gguf", LLAMA, fields={"tokenizer.chat_template": None})
    with pytest.raises(MantlerError, match="no chat template") as caught:
        await Renderer(stored(bare, tmp_path / "stored").template).render(HELLO)
    assert (caught.value.code, caught.value.param) == (ErrorCode.INVALID_PARAMETER, "messages")


def test_text_that_is_not_unicode_is_refused(tiny: Tokenizer) -> None:
    with pytest.raises(MantlerError) as caught:
        tiny.encode("\ud800")
    assert caught.value.param == "prompt"
    with pytest.raises(MantlerError) as caught:
        tiny.encode_chat("\ud800")
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('Roles must alternate.') }}", "Roles must alternate"),
        ("{{ messages[7].content.x }}", "cannot render them"),
        ("{{ nothing() }}", "cannot render them"),
        ("{{ 1 // 0 }}", "cannot render them"),
        ("{{ messages.append(1) }}", "cannot render them"),
        ("{{ ''.__class__.__mro__ }}", "cannot render them"),
        ("{{ 'x' * 10**9 }}", "cannot render them"),
        ("{{ 9**99999999 }}", "cannot render them"),
        ("{% for i in range(2000) %}{{ 'x' * 1000 }}{% endfor %}", "too long"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "cannot render them"),
    ],
)
def test_template_failures_are_the_callers_400(source: str, message: str) -> None:
    with pytest.raises(MantlerError, match=message) as caught:
        ChatTemplate(source, {}).render(HELLO.messages)
    assert (caught.value.code, caught.value.param) == (ErrorCode.INVALID_PARAMETER, "messages")


def test_a_long_conversation_is_rendered_whole() -> None:
    text = "x" * (3 * MAX_TEMPLATE_CHARS)
    assert ChatTemplate("{{ messages[0].content }}", {}).render((ChatMessage(Role.USER, text),)) == text


def test_a_template_with_bad_syntax_cannot_be_pulled() -> None:
    with pytest.raises(PullError, match="cannot be read"):
        ChatTemplate("{% if %}", {})


def test_turns_reach_the_template_as_it_knows_them() -> None:
    template = "{% for m in messages %}{{ m.role }}={{ m.content }}{{ m.name }};{% endfor %}{{ bos_token }}"
    messages = (ChatMessage(Role.DEVELOPER, "a"), ChatMessage(Role.ASSISTANT, None), ChatMessage(Role.USER, "b", "Jo"))
    assert ChatTemplate(template, {"bos_token": "<s>"}).render(messages) == "system=a;assistant=;user=bJo;<s>"
    knowing = template + "{# developer #}"
    assert ChatTemplate(knowing, {}).render(messages) == "developer=a;assistant=;user=bJo;"


def test_the_reference_renderer_agrees_on_what_templates_use() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    source = """
    {%- set ns = namespace(n=0) -%}
    {% for m in messages %}
        {%- if m.role == 'system' %}{% continue %}{% endif %}
        {% generation %}[{{ m | tojson(indent=1) }}]{% endgeneration %}
        {% set ns.n = ns.n + 1 %}
    {% endfor %}
    {{ ns.n }}{{ dict(a=1) | tojson }}{{ strftime_now('%Y') }}{{ tools is none }}
    {% if add_generation_prompt %}go{% endif %}

"""
    messages = (ChatMessage(Role.SYSTEM, "s"), ChatMessage(Role.USER, "<b> é"), ChatMessage(Role.ASSISTANT, "x"))
    turns = [{"role": m.role.value, "content": m.content} for m in messages]
    expected: object = render_jinja_template([turns], chat_template=source, add_generation_prompt=True)[0]
    assert [ChatTemplate(source, {}).render(messages)] == expected


@pytest.mark.model
def test_golden_prompts_are_rendered_and_encoded_exactly(smollm2_tokenizer: Tokenizer) -> None:
    conversations = golden.conversations()
    assert len(conversations) == 20
    for conversation in conversations:
        assert rendered(smollm2_tokenizer, ChatPrompt(conversation.messages)) == conversation.prompt
        assert encoded(smollm2_tokenizer, ChatPrompt(conversation.messages)) == conversation.prompt_ids
        answer = b"".join(smollm2_tokenizer.token_bytes[i] for i in conversation.greedy_ids)
        assert answer.decode() == conversation.greedy_text
    assert 2 in smollm2_tokenizer.eos_ids


@pytest.mark.model
def test_transformers_renders_and_encodes_the_golden_prompts_the_same(
    smollm2_gguf: Path, smollm2_tokenizer: Tokenizer
) -> None:
    from transformers import PreTrainedTokenizerFast

    data = open_source(smollm2_gguf).tokenizer
    reference = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=data.tokenizer, chat_template=data.chat_template, **data.vocabulary.special_tokens
    )
    for conversation in golden.conversations():
        turns = [{"role": m.role.value, "content": m.content or ""} for m in conversation.messages]
        ids = reference.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        assert encoded(smollm2_tokenizer, ChatPrompt(conversation.messages)) == ids


@pytest.mark.model
@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_the_default_model_spells_any_text(smollm2_tokenizer: Tokenizer, text: str) -> None:
    # Its vocabulary lacks the bytes of some control characters and of what begins beyond U+40000; they are dropped.
    known = {token[0] for token in smollm2_tokenizer.token_bytes if len(token) == 1}
    spelled = b"".join(smollm2_tokenizer.token_bytes[i] for i in smollm2_tokenizer.encode(text))
    assert spelled == bytes(byte for byte in text.encode() if byte in known)
