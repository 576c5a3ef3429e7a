"""Prompts of a known length that no cache has seen.

Every word is one token of the default model's vocabulary. A prompt has a system message of its own, so that not even
the one of the chat template is shared: prompts differ from their fourth token on.
"""

from __future__ import annotations

import random

WORDS = (  # noqa: SIM905 - reads better than sixty quoted words
    "sea light house bread winter robot moon map paper chess river stone cloud garden music window silver forest "
    "engine bridge letter harbour candle orchard signal mirror lantern meadow anchor violin green happy small quick "
    "early mountain story night summer water table money history language party system school family market street "
    "animal doctor metal science energy planet coffee ocean island castle village"
).split()
TEMPLATE_TOKENS = 14
"""What the default model's chat template adds to a system and a user message."""
SYSTEM_WORDS = 8


def words(count: int, rng: random.Random) -> str:
    """``count`` random words: as many tokens."""
    return " ".join(rng.choice(WORDS) for _ in range(count))


def prompt(tokens: int, seed: str) -> tuple[str, str]:
    """A system and a user message that make a prompt of ``tokens`` tokens. The same seed gives the same prompt."""
    rng = random.Random(seed)
    return words(SYSTEM_WORDS, rng), words(tokens - TEMPLATE_TOKENS - SYSTEM_WORDS, rng)
