"""How tokens are drawn, which of their probabilities are told, and when generation ends, with the ranges of each."""

from __future__ import annotations

from dataclasses import dataclass

from mantler.errors import invalid
from mantler.messages.ranges import MAX_TOKENS, check_float, check_int

MAX_STOP_STRINGS = 16
"""Stop strings per request over gRPC; REST allows 4, as OpenAI does."""
MAX_STOP_STRING_CHARS = 1024
"""A stop string may hold back this much text."""
MAX_STOP_TOKEN_IDS = 256
MAX_LOGIT_BIASES = 300
"""As many as OpenAI takes."""
MAX_LOGIT_BIAS = 100.0
"""Biases go from minus this to this."""
MAX_PENALTY = 2.0
"""Presence and frequency penalties go from minus this to this."""
MAX_REPETITION_PENALTY = 10.0
MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is drawn.

    First logit_bias is added to the logits, then they are changed by repetition_penalty, frequency_penalty and
    presence_penalty. The distribution is cut in this order: temperature, top_k, top_p, min_p. Each of them keeps a
    prefix of the tokens sorted by probability.
    """

    temperature: float = 1.0
    """0 is greedy. 0 to 2."""
    top_p: float = 1.0
    """Above 0, at most 1."""
    top_k: int = 0
    """0 keeps all."""
    min_p: float = 0.0
    """0 to 1."""
    seed: int | None = None
    """64 bits, unsigned."""
    presence_penalty: float = 0.0
    """Taken off the logit of each token that the output has. -2 to 2."""
    frequency_penalty: float = 0.0
    """Taken off the logit of a token once for each time that the output has it. -2 to 2."""
    repetition_penalty: float = 1.0
    """Divides positive logits, and multiplies others, of tokens in the prompt or the output. Above 0, at most 10."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Token ids, each once, and what is added to their logits: -100 to 100."""

    def __post_init__(self) -> None:
        check_float("temperature", self.temperature, 0.0, 2.0)
        check_float("top_p", self.top_p, 0.0, 1.0, open_low=True)
        check_int("top_k", self.top_k, 0, MAX_TOKENS)
        check_float("min_p", self.min_p, 0.0, 1.0)
        if self.seed is not None:
            check_int("seed", self.seed, 0, 2**64 - 1)
        check_float("presence_penalty", self.presence_penalty, -MAX_PENALTY, MAX_PENALTY)
        check_float("frequency_penalty", self.frequency_penalty, -MAX_PENALTY, MAX_PENALTY)
        check_float("repetition_penalty", self.repetition_penalty, 0.0, MAX_REPETITION_PENALTY, open_low=True)
        self._check_logit_bias()

    @property
    def penalises(self) -> bool:
        """Whether what was said already changes what comes next."""
        return (self.presence_penalty, self.frequency_penalty, self.repetition_penalty) != (0.0, 0.0, 1.0)

    def _check_logit_bias(self) -> None:
        if len(self.logit_bias) > MAX_LOGIT_BIASES:
            raise invalid("logit_bias", f"must hold at most {MAX_LOGIT_BIASES} tokens, got {len(self.logit_bias)}.")
        for token_id, bias in self.logit_bias:
            check_int("logit_bias", token_id, 0, 2**32 - 1)
            check_float("logit_bias", bias, -MAX_LOGIT_BIAS, MAX_LOGIT_BIAS)
        if len({token_id for token_id, _ in self.logit_bias}) < len(self.logit_bias):
            raise invalid("logit_bias", "must name each token once.")


@dataclass(frozen=True, slots=True)
class LogprobsParams:
    """Asks for log probabilities of the tokens of the output."""

    top: int = 0
    """Likeliest tokens to list at each position, 0 to 20. OpenAI's ``top_logprobs``."""

    def __post_init__(self) -> None:
        check_int("top_logprobs", self.top, 0, MAX_TOP_LOGPROBS)


@dataclass(frozen=True, slots=True)
class StopParams:
    """When generation ends."""

    max_tokens: int | None = None
    """``None``: what is left of the context."""
    min_tokens: int = 0
    """No end-of-sequence token is drawn before this many tokens."""
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            check_int("max_tokens", self.max_tokens, 1, MAX_TOKENS)
        check_int("min_tokens", self.min_tokens, 0, MAX_TOKENS)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise invalid("min_tokens", f"must be at most max_tokens ({self.max_tokens}), got {self.min_tokens}.")
        if len(self.stop_strings) > MAX_STOP_STRINGS:
            raise invalid("stop", f"must hold at most {MAX_STOP_STRINGS} strings, got {len(self.stop_strings)}.")
        for stop in self.stop_strings:
            if not 1 <= len(stop) <= MAX_STOP_STRING_CHARS:
                raise invalid(
                    "stop", f"a stop string must have 1 to {MAX_STOP_STRING_CHARS} characters, got {len(stop)}."
                )
        if len(self.stop_token_ids) > MAX_STOP_TOKEN_IDS:
            raise invalid(
                "stop_token_ids", f"must hold at most {MAX_STOP_TOKEN_IDS} ids, got {len(self.stop_token_ids)}."
            )
        for token_id in self.stop_token_ids:
            check_int("stop_token_ids", token_id, 0, 2**32 - 1)
