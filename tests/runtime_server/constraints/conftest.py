"""A vocabulary of single bytes and some longer tokens, and a compiler for it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import tokenizers

from runtime_server.chat.dialect import Dialect
from runtime_server.constraints.compiler import Compiler
from runtime_server.models.tokenizer import Tokenizer
from tests.fake_backend import VOCAB_SIZE

EOS = 256
LONGER = (b'{"', b'":', b'", "', b"},", b"]}", b"null", b"true", b"12", b"ab", b'"}', b" the")


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Ids 0 to 255 are bytes, 256 ends an output, some follow that hold more; the rest is silent."""
    table = [*(bytes([byte]) for byte in range(256)), b"", *LONGER]
    table += [b""] * (VOCAB_SIZE - len(table))
    return Tokenizer(tokenizers.Tokenizer(tokenizers.models.BPE()), None, frozenset({EOS}), table, Dialect(None))


@pytest.fixture
async def compiler(tokenizer: Tokenizer) -> AsyncIterator[Compiler]:
    made = Compiler(tokenizer, VOCAB_SIZE, name="fake")
    yield made
    await made.close()
