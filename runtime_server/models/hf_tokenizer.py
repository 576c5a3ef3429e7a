"""Reads the tokenizer and chat template of a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers

from runtime_server.models.errors import PullError
from runtime_server.models.json_file import JsonFile
from runtime_server.models.vocabulary import TOKENIZER_FILE, TURN_ENDS, TokenizerData, Vocabulary, parse_tokenizer

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def read_tokenizer(folder: Path, config: JsonFile) -> TokenizerData:
    """The folder's tokenizer; ``config`` is its ``config.json``.

    Raises:
        PullError: a file is missing or damaged, or nothing says which token ends an answer.
    """
    tokenizer = parse_tokenizer(_tokenizer_json(folder))
    options = JsonFile.find(folder / "tokenizer_config.json")
    older = JsonFile.find(folder / "special_tokens_map.json")
    special = {
        name: token
        for name in SPECIAL_NAMES
        if (token := _text(options.values.get(name)) or _text(older.values.get(name))) is not None
    }
    generation = JsonFile.find(folder / "generation_config.json")
    eos = _ids(generation, "eos_token_id") | _ids(config, "eos_token_id") | _named_ends(tokenizer, special)
    if not eos:
        raise PullError("The model does not say which token ends an answer (eos_token_id).")
    vocabulary = Vocabulary(config.need_value("vocab_size", int), tuple(sorted(eos)), (), special)
    return TokenizerData(tokenizer, vocabulary, _template(folder, options))


def _tokenizer_json(folder: Path) -> str:
    try:
        return (folder / TOKENIZER_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return _converted(folder)
    except UnicodeDecodeError as error:
        raise PullError(f"{TOKENIZER_FILE} is not JSON.") from error


def _converted(folder: Path) -> str:
    """Older folders hold vocab.json and merges.txt, or tokenizer.model; transformers knows how to read each class."""
    # Imported here because it takes a second and only these folders need it.
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        text: str = loaded.backend_tokenizer.to_str()
    except Exception as error:  # what transformers raises depends on the tokenizer's class
        raise PullError(
            f"{TOKENIZER_FILE} is missing, and the folder has no other tokenizer that can be read.",
            hint="save the model with a fast tokenizer, or use a GGUF file of it",
        ) from error
    return text


def _named_ends(tokenizer: tokenizers.Tokenizer, special: dict[str, str]) -> set[int]:
    added = tokenizer.get_added_tokens_decoder()
    ends = {i for i, token in added.items() if token.special and token.content in TURN_ENDS}
    named = tokenizer.token_to_id(special["eos_token"]) if "eos_token" in special else None
    return ends if named is None else ends | {named}


def _template(folder: Path, options: JsonFile) -> str | None:
    """The newest way of storing a template wins, as it does for transformers."""
    alone = folder / "chat_template.jinja"
    if alone.exists():
        return alone.read_bytes().decode()
    value: Any = JsonFile.find(folder / "chat_template.json").values.get("chat_template")
    if value is None:
        value = options.values.get("chat_template")
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        value = named.get("default")
    if value is not None and not isinstance(value, str):
        raise PullError("The model's chat template is not text.")
    return value


def _ids(file: JsonFile, key: str) -> set[int]:
    value = file.values.get(key)
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in values):
        raise PullError(f"{file.name}: {key!r} is not a token id.")
    return set(values)


def _text(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None
