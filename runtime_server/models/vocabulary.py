"""What a stored tokenizer consists of, and the exact bytes behind each token id."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tokenizers

from runtime_server.models.errors import PullError

TOKENIZER_FILE = "tokenizer.json"
VOCABULARY_FILE = "vocabulary.json"
TEMPLATE_FILE = "chat_template.jinja"

TURN_ENDS = frozenset({"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|endoftext|>", "<|end_of_text|>"})
"""Control tokens that end an answer in every model that has them, also where its file names only one of them."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What the tokenizer's own file does not say."""

    vocab_size: int
    """Ids that the model knows. Models pad theirs beyond the tokenizer's."""
    eos_ids: tuple[int, ...]
    """Tokens that end an answer."""
    silent_ids: tuple[int, ...]
    """Tokens without text: control tokens and placeholders."""
    special_tokens: dict[str, str]
    """``bos_token``, ``eos_token`` … as chat templates call them."""


@dataclass(frozen=True, slots=True)
class StoredTemplate:
    """A chat template's text, and the special tokens that it names."""

    source: str
    special_tokens: dict[str, str]


@dataclass(frozen=True, slots=True)
class TokenizerData:
    """A tokenizer on its way into the store."""

    tokenizer: tokenizers.Tokenizer
    vocabulary: Vocabulary
    chat_template: str | None

    def save(self, folder: Path) -> None:
        """Writes ``tokenizer.json``, ``vocabulary.json`` and, where there is one, ``chat_template.jinja``."""
        (folder / TOKENIZER_FILE).write_text(self.tokenizer.to_str(), encoding="utf-8")
        (folder / VOCABULARY_FILE).write_text(json.dumps(asdict(self.vocabulary), indent=1), encoding="utf-8")
        if self.chat_template is not None:
            (folder / TEMPLATE_FILE).write_text(self.chat_template, encoding="utf-8", newline="")


def parse_tokenizer(text: str) -> tokenizers.Tokenizer:
    """The tokenizer that ``text``, a ``tokenizer.json``, describes. Raises :class:`PullError`."""
    try:
        tokenizer = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the package raises bare Exception
        raise PullError(f"{TOKENIZER_FILE} is damaged or too new to be read.") from error
    # Stored options of training batches; a prompt is neither padded nor cut.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def load_vocabulary(folder: Path) -> Vocabulary:
    """Reads ``vocabulary.json``."""
    data = json.loads((folder / VOCABULARY_FILE).read_text(encoding="utf-8"))
    return Vocabulary(
        int(data["vocab_size"]), tuple(data["eos_ids"]), tuple(data["silent_ids"]), dict(data["special_tokens"])
    )


def token_bytes(tokenizer: tokenizers.Tokenizer, vocabulary: Vocabulary, spoken: Collection[str] = ()) -> list[bytes]:
    """The bytes that each token id adds to a text; ``b""`` for silent ones and padding, unless they are ``spoken``.

    Byte-level vocabularies spell a byte as one character of the GPT-2 alphabet. SentencePiece ones spell a space
    as U+2581 and a lone byte as ``<0xNN>``. Raises :class:`PullError` for any other kind.
    """
    decoders = set(_types(json.loads(tokenizer.decoder.__getstate__()))) if tokenizer.decoder is not None else set()
    if "ByteLevel" in decoders:
        spell = _spell_byte_level
    elif decoders & {"Metaspace", "ByteFallback"}:
        spell = _spell_sentencepiece
    else:
        kind = ", ".join(sorted(decoders)) or "none"
        raise PullError(
            f"Tokenizers that decode with {kind} are not supported.", hint="supported: ByteLevel, Metaspace"
        )
    added = tokenizer.get_added_tokens_decoder()
    known = tokenizer.get_vocab(with_added_tokens=True)
    silent = set(vocabulary.silent_ids) | {token_id for token_id, token in added.items() if token.special}
    silent -= {known[token] for token in spoken if token in known}
    table = [b""] * max(vocabulary.vocab_size, max(known.values(), default=-1) + 1)
    for token, token_id in known.items():
        if token_id not in silent:
            table[token_id] = token.encode() if token_id in added else spell(token)
    return table


def byte_alphabet() -> dict[str, int]:
    """GPT-2's character for each byte: itself where it prints, else the next free one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}


_BYTE_OF = byte_alphabet()


def _spell_byte_level(token: str) -> bytes:
    if all(char in _BYTE_OF for char in token):
        return bytes(_BYTE_OF[char] for char in token)
    return token.encode()


def _spell_sentencepiece(token: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(byte.group(1), 16)]) if byte else token.replace("\u2581", " ").encode()


def _types(value: Any) -> Iterator[str]:
    """Every ``type`` within a serialised part of a tokenizer."""
    if isinstance(value, dict):
        if isinstance(value.get("type"), str):
            yield value["type"]
        for inner in value.values():
            yield from _types(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _types(inner)
