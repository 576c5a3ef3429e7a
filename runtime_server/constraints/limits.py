"""How much a constraint may cost, to compile and per token."""

from __future__ import annotations

from llguidance import LLParserLimits

from runtime_server.limited.bounds import Bounds

MAX_SCHEMA_DEPTH = 100
"""Nested objects and arrays of a schema's text. The compiler's own reader of JSON stops a little deeper."""
COMPILE_TIMEOUT_S = 3.0
"""For one constraint; ordinary ones take milliseconds."""
COMPILE_BOUNDS = Bounds(timeout_s=COMPILE_TIMEOUT_S, memory_bytes=2_000_000_000, stack_bytes=1_048_576)
"""Of the process that tries constraints. What fits its stack fits the threads of the runtime, which have more."""
MAX_WAITING_COMPILES = 16
"""Constraints that wait for one another, per model."""
CACHED_GRAMMARS = 32
"""Compiled constraints that are kept, per model."""
MAX_CACHED_CHARS = 16_384
"""Of the compiler's text. Longer constraints are not kept: compiled, they take up to some 500 bytes per character."""
MASK_TIMEOUT_S = 2.0
"""For one mask. The parser's limits stop it long before; this is for what they overlook."""


def parser_limits() -> LLParserLimits:
    """The bounds of the parser, below its defaults: a mask that exhausts them takes about 10 ms, not 100."""
    return LLParserLimits(
        initial_lexer_fuel=500_000,
        step_lexer_fuel=100_000,
        step_max_items=20_000,
        max_lexer_states=20_000,
        max_grammar_size=200_000,
        # Without it the parser's whole state would be in the message.
        verbose_errors=False,
    )
