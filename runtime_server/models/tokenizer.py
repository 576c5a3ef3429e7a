"""The tokenizer of a stored model: text to ids, conversations to ids, ids to bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import tokenizers

from mantler.errors import invalid
from runtime_server.chat.dialect import Dialect
from runtime_server.models.errors import PullError
from runtime_server.models.vocabulary import (
    TEMPLATE_FILE,
    TOKENIZER_FILE,
    StoredTemplate,
    load_vocabulary,
    parse_tokenizer,
    token_bytes,
)


class Tokenizer:
    """Encodes for one model. Safe to use from several threads; encoding releases the GIL.

    Attributes:
        template: writes the model's conversations; ``None`` for a model without one.
        dialect: how the model writes reasoning and calls.
        token_bytes: the bytes that each id adds to a text, by id; ``b""`` for control tokens, but for the tags of the
            dialect.
        eos_ids: tokens that end an answer.
        vocab_size: ids that the model knows, padding included.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        template: StoredTemplate | None,
        eos_ids: frozenset[int],
        table: list[bytes],
        dialect: Dialect,
    ) -> None:
        self.template = template
        self.dialect = dialect
        self._tokenizer = tokenizer
        self.eos_ids = eos_ids
        self.token_bytes = table
        self.vocab_size = len(table)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Reads the tokenizer of a stored model. Raises :class:`PullError` where its files are damaged or missing."""
        try:
            tokenizer = parse_tokenizer((folder / TOKENIZER_FILE).read_text(encoding="utf-8"))
            vocabulary = load_vocabulary(folder)
            template_file = folder / TEMPLATE_FILE
            source = template_file.read_bytes().decode() if template_file.exists() else None
        except FileNotFoundError as error:
            raise PullError(f"The stored tokenizer lacks {Path(error.filename).name}.") from error
        except (UnicodeDecodeError, json.JSONDecodeError, LookupError, TypeError) as error:
            raise PullError("The stored tokenizer is damaged.", hint="pull the model again") from error
        template = None if source is None else StoredTemplate(source, vocabulary.special_tokens)
        dialect = Dialect(source)
        table = token_bytes(tokenizer, vocabulary, dialect.tags)
        return cls(tokenizer, template, frozenset(vocabulary.eos_ids), table, dialect)

    def encode(self, text: str, *, param: str = "prompt") -> list[int]:
        """Ids of ``text``. Special tokens spelled in it are recognised; a BOS comes first where the model has it so.

        Raises:
            MantlerError: INVALID_PARAMETER for ``param`` where ``text`` is not Unicode (lone surrogates).
        """
        return self._encode(text, param, add_special_tokens=True)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of ``token_ids``, control tokens included. Bytes that are no whole character are U+FFFD."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)

    def encode_chat(self, rendered: str) -> list[int]:
        """Ids of a rendered conversation. The template writes its own BOS where the model wants one."""
        return self._encode(rendered, "messages", add_special_tokens=False)

    def encode_exactly(self, data: bytes) -> list[int]:
        """Ids whose bytes are ``data``, no control token among them.

        They are the ones the model has learned where its tokenizer spells ``data`` exactly. Where it would not, as it
        adds a space or recognises a control token, each token is the longest that fits. Raises ``ValueError`` for a
        byte that no token holds.
        """
        table = self.token_bytes
        try:
            token_ids = self._tokenizer.encode(data.decode(), add_special_tokens=False).ids
        except UnicodeDecodeError:
            return self._encode_greedily(data)
        pieces = [table[token_id] for token_id in token_ids]
        if all(pieces) and b"".join(pieces) == data:
            return token_ids
        return self._encode_greedily(data)

    @cached_property
    def _id_of(self) -> dict[bytes, int]:
        return {data: token_id for token_id, data in enumerate(self.token_bytes) if data}

    def _encode_greedily(self, data: bytes) -> list[int]:
        longest = max(map(len, self._id_of), default=0)
        token_ids = []
        start = 0
        while start < len(data):
            stop = min(len(data), start + longest)
            while data[start:stop] not in self._id_of:
                stop -= 1
                if stop == start:
                    raise ValueError(f"no token holds the byte {data[start]}")
            token_ids.append(self._id_of[data[start:stop]])
            start = stop
        return token_ids

    def _encode(self, text: str, param: str, *, add_special_tokens: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise invalid(param, "holds half of a surrogate pair, which is not a character.") from error
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
