"""The events of an answer, as its stream brings them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from mantler.messages.tools import ToolCallDelta


class FinishReason(Enum):
    """Why a choice ended. The values are OpenAI's ``finish_reason``."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one choice.

    The choices of a request share its prompt: the request's usage is the prompt of any one of them, which is the same
    for all, and the sum of their completions.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int = 0
    """Computed before this request came; what its choices took from each other is not among them."""
    reasoning_tokens: int = 0
    """Of the completion tokens."""


@dataclass(frozen=True, slots=True)
class TokenCandidate:
    """A token that could stand at a position."""

    token_id: int
    token_bytes: bytes
    """Exact: a character may span several tokens. Empty for control tokens."""
    logprob: float
    """Natural logarithm of its probability, at most 0. -9999 stands for no probability at all."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The log probability of a token of the output, in the model's own distribution.

    That is the softmax of the logits as the model gives them: before logit_bias, penalties, constraints, temperature
    and cuts. So at temperature 0 the chosen token is the first of the likeliest, unless bias, penalties or a
    constraint chose another one.
    """

    chosen: TokenCandidate
    top: tuple[TokenCandidate, ...] = ()
    """The likeliest tokens at this position, best first; the chosen one may be missing."""


@dataclass(frozen=True, slots=True)
class Started:
    """A choice was admitted; its first token is on the way."""

    model: str
    prompt_tokens: int
    cached_prompt_tokens: int = 0
    """Known so far; the usage at the end may count more."""
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class Delta:
    """What was generated since the last delta. ``text`` is empty while characters are held back.

    Where log probabilities were asked for, a token comes with the delta that has the last of its text, and one whose
    text a stop string cut off as a whole does not come. The one that a stop string begins in does, with all its bytes.
    Otherwise tokens come at once.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each of ``token_ids``, or none."""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    reasoning: str = ""
    """Kept apart from ``text``."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a choice."""

    reason: FinishReason
    usage: Usage
    stop_string: str | None = None
    stop_token_id: int | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One message of an answer's stream."""

    seq: int
    """Counts the stream's events from 0 without gaps."""
    index: int
    """Index of the choice."""
    body: Started | Delta | Finished
