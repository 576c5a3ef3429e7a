"""What is asked of everybody who is measured.

It needs the standard library only, as do the modules that it imports: the peer may live in an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal, get_args

Kind = Literal["decode", "mixed"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LONG_NEW_TOKENS = 16
"""Of each long prompt's answer."""
WARM_TOKENS = 8
"""What a size of batch needs once, such as captured graphs, happens within so many steps."""
_PIECE_TOKENS = 128
"""A long prompt is computed in pieces of at least this many tokens."""


@dataclass(frozen=True, slots=True)
class Load:
    """How much is measured. Token counts are of one stream."""

    kinds: tuple[Kind, ...] = KINDS
    batches: tuple[int, ...] = (1, 8, 32, 64, 128)
    """Streams that decode together."""
    context: int = 1024
    """Tokens of a stream's prompt, before it decodes."""
    new_tokens: int = 64
    """That each stream decodes."""
    streams: int = 32
    """Of the mixed load, beside which the long prompts arrive."""
    long_tokens: int = 1000
    long_prompts: int = 8

    @property
    def most_streams(self) -> int:
        """At the same time."""
        decoding = max(self.batches) if "decode" in self.kinds else 0
        mixing = self.streams + 1 if "mixed" in self.kinds else 0
        return max(decoding, mixing)

    @property
    def patience(self) -> int:
        """Tokens that a stream of the mixed load may decode: twice what all long prompts are expected to take."""
        steps = -(-self.long_tokens // _PIECE_TOKENS) + LONG_NEW_TOKENS
        return 2 * (self.long_prompts + 1) * steps

    @property
    def longest(self) -> int:
        """Tokens of a stream in the end, at most."""
        decoding = self.context + 1 + max(self.new_tokens, WARM_TOKENS) if "decode" in self.kinds else 0
        mixing = max(self.context + 1 + self.patience, self.long_tokens + LONG_NEW_TOKENS)
        return max(decoding, mixing if "mixed" in self.kinds else 0)

    def to_json(self) -> str:
        """For :func:`load_option`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Load:
        """The opposite of :meth:`to_json`."""
        value = json.loads(text)
        return cls(**{**value, "kinds": tuple(value["kinds"]), "batches": tuple(value["batches"])})


def add_options(parser: argparse.ArgumentParser) -> None:
    """The flags of everything that is started to be measured."""
    parser.add_argument("--device", required=True, help="cpu or cuda:N")
    parser.add_argument("--load", required=True, type=Load.from_json, help="what is asked, as JSON")


def prompts(vocab_size: int, count: int, tokens: int, seed: str) -> list[list[int]]:
    """``count`` prompts of random token ids. The same seed gives the same ones; no two begin alike."""
    return [prompt(vocab_size, tokens, f"{seed} {number}") for number in range(count)]


def prompt(vocab_size: int, tokens: int, seed: str) -> list[int]:
    """Random token ids."""
    return random.Random(seed).choices(range(vocab_size), k=tokens)


def long_prompts(vocab_size: int, load: Load) -> Iterator[list[int]]:
    """Those of the mixed load; the first is to warm up."""
    for number in range(load.long_prompts + 1):
        yield prompt(vocab_size, load.long_tokens, f"long {number}")
