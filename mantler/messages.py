"""The plain values that travel inside Mantler: a request, and the events of its answer.

They mirror ``proto/mantler/v1`` and are what every layer works with. :mod:`mantler.wire` is the only place
that turns them into protobuf messages and back. Constructing one checks its ranges, so a value that exists is
valid; the error names the field as the OpenAI API spells it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from mantler.constraints import Constraint
from mantler.errors import ErrorCode, MantlerError, invalid
from mantler.tools import NamedTool, Tool, ToolCall, ToolCallDelta, ToolChoice, ToolChoiceMode

MAX_MESSAGES = 8192
"""Turns of a conversation. Each takes some tokens, and each costs every layer some work before they are counted."""
MAX_STOP_STRINGS = 16
"""Stop strings per request over gRPC; REST allows 4, as OpenAI does."""
MAX_TOOLS = 128
"""As many as OpenAI takes."""
MAX_TEMPLATE_VARIABLES = 64
MAX_STOP_STRING_CHARS = 1024
"""A stop string may hold back this much text."""
MAX_STOP_TOKEN_IDS = 256
MAX_REQUEST_ID_CHARS = 128
MAX_CHOICES = 128
"""Answers to one request. A model may take fewer: its slots and the places in its queue."""
MAX_LOGIT_BIASES = 300
"""As many as OpenAI takes."""
MAX_LOGIT_BIAS = 100.0
"""Biases go from minus this to this."""
MAX_PENALTY = 2.0
"""Presence and frequency penalties go from minus this to this."""
MAX_REPETITION_PENALTY = 10.0
MAX_TOP_LOGPROBS = 20
MAX_PRIORITY = 100
"""Priorities go from minus this to this."""
MAX_CACHE_SALT_CHARS = 256
MAX_TOKENS = 2**31 - 1


class Role(Enum):
    """Who speaks."""

    SYSTEM = "system"
    DEVELOPER = "developer"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation. ``content`` is ``None`` where the turn has none, as beside tool calls."""

    role: Role
    content: str | None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    """That the assistant made in this turn."""
    tool_call_id: str | None = None
    """In a tool's message: the call that it answers."""
    reasoning: str | None = None
    """The assistant's in this turn."""


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation to be rendered with the model's chat template."""

    messages: tuple[ChatMessage, ...]
    tools: tuple[Tool, ...] = ()
    """That are offered."""
    tool_choice: ToolChoice = ToolChoiceMode.AUTO
    parallel_tool_calls: bool = True
    """Whether one answer may make several calls."""
    template_variables: Mapping[str, object] = field(default_factory=dict, hash=False)
    """Further ones for the chat template, JSON values by name."""

    def __post_init__(self) -> None:
        if not self.messages:
            raise invalid("messages", "must hold at least one message.")
        if len(self.messages) > MAX_MESSAGES:
            raise invalid("messages", f"must hold at most {MAX_MESSAGES} messages, got {len(self.messages)}.")
        self._check_tools()
        if len(self.template_variables) > MAX_TEMPLATE_VARIABLES:
            raise invalid(
                "template_variables",
                f"must hold at most {MAX_TEMPLATE_VARIABLES} names, got {len(self.template_variables)}.",
            )

    def _check_tools(self) -> None:
        if len(self.tools) > MAX_TOOLS:
            raise invalid("tools", f"must hold at most {MAX_TOOLS} tools, got {len(self.tools)}.")
        names = {tool.name for tool in self.tools}
        if len(names) < len(self.tools):
            raise invalid("tools", "must name each function once.")
        if isinstance(self.tool_choice, NamedTool):
            if self.tool_choice.name not in names:
                raise invalid("tool_choice", "must name one of the tools.")
        elif self.tool_choice is ToolChoiceMode.REQUIRED and not names:
            raise invalid("tool_choice", "must be auto or none where no tools are offered.")


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Text that is tokenised as it is; special tokens in it are recognised."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Token ids that are used as they are."""

    token_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.token_ids:
            raise invalid("prompt", "must hold at least one token.")


Prompt = ChatPrompt | TextPrompt | TokenPrompt


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
        _check_float("temperature", self.temperature, 0.0, 2.0)
        _check_float("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _check_int("top_k", self.top_k, 0, MAX_TOKENS)
        _check_float("min_p", self.min_p, 0.0, 1.0)
        if self.seed is not None:
            _check_int("seed", self.seed, 0, 2**64 - 1)
        _check_float("presence_penalty", self.presence_penalty, -MAX_PENALTY, MAX_PENALTY)
        _check_float("frequency_penalty", self.frequency_penalty, -MAX_PENALTY, MAX_PENALTY)
        _check_float("repetition_penalty", self.repetition_penalty, 0.0, MAX_REPETITION_PENALTY, open_low=True)
        self._check_logit_bias()

    @property
    def penalises(self) -> bool:
        """Whether what was said already changes what comes next."""
        return (self.presence_penalty, self.frequency_penalty, self.repetition_penalty) != (0.0, 0.0, 1.0)

    def _check_logit_bias(self) -> None:
        if len(self.logit_bias) > MAX_LOGIT_BIASES:
            raise invalid("logit_bias", f"must hold at most {MAX_LOGIT_BIASES} tokens, got {len(self.logit_bias)}.")
        for token_id, bias in self.logit_bias:
            _check_int("logit_bias", token_id, 0, 2**32 - 1)
            _check_float("logit_bias", bias, -MAX_LOGIT_BIAS, MAX_LOGIT_BIAS)
        if len({token_id for token_id, _ in self.logit_bias}) < len(self.logit_bias):
            raise invalid("logit_bias", "must name each token once.")


@dataclass(frozen=True, slots=True)
class LogprobsParams:
    """Asks for log probabilities of the tokens of the output."""

    top: int = 0
    """Likeliest tokens to list at each position, 0 to 20. OpenAI's ``top_logprobs``."""

    def __post_init__(self) -> None:
        _check_int("top_logprobs", self.top, 0, MAX_TOP_LOGPROBS)


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
            _check_int("max_tokens", self.max_tokens, 1, MAX_TOKENS)
        _check_int("min_tokens", self.min_tokens, 0, MAX_TOKENS)
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
            _check_int("stop_token_ids", token_id, 0, 2**32 - 1)


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One request for generated text."""

    request_id: str
    model: str
    prompt: Prompt
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: StopParams = field(default_factory=StopParams)
    logprobs: LogprobsParams | None = None
    """``None``: none are sent."""
    n: int = 1
    """Choices, 1 to 128. Each draws numbers of its own out of the seed."""
    priority: int = 0
    """Lower is sooner. Waiting counts as well, so that nobody waits for ever."""
    cache_salt: str | None = None
    """Prompts share computed prefixes with requests of the same salt only; without one, with those without one."""
    constraint: Constraint | None = None
    """What the output must match."""

    def __post_init__(self) -> None:
        printable = self.request_id.isascii() and self.request_id.isprintable()
        if not (printable and 1 <= len(self.request_id) <= MAX_REQUEST_ID_CHARS):
            raise invalid("request_id", f"must be 1 to {MAX_REQUEST_ID_CHARS} characters of printable ASCII.")
        if not self.model:
            raise invalid("model", "must name a model.")
        _check_int("n", self.n, 1, MAX_CHOICES)
        _check_int("priority", self.priority, -MAX_PRIORITY, MAX_PRIORITY)
        if self.cache_salt is not None and not 1 <= len(self.cache_salt) <= MAX_CACHE_SALT_CHARS:
            raise invalid(
                "cache_salt", f"must have 1 to {MAX_CACHE_SALT_CHARS} characters, got {len(self.cache_salt)}."
            )


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


class ModelState(Enum):
    """Where a model is in its life on a machine."""

    STORED = "stored"
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class StepProfile:
    """Sums over the steps of an engine that had a similar number of sequences, since the model was loaded."""

    max_sequences: int
    """A power of two. The steps had as many sequences at most, and more than half as many."""
    prompts: bool
    """Whether the steps computed parts of prompts, or decoded only."""
    steps: int
    prompt_tokens: int
    """Computed, not cached."""
    sampled_tokens: int
    schedule_s: float
    """Choosing what runs."""
    run_s: float
    """On the device."""
    sample_s: float
    """Drawing tokens from logits."""
    publish_s: float
    """Taking the tokens in and handing them over to whoever streams them."""

    @property
    def total_s(self) -> float:
        """All of it."""
        return self.schedule_s + self.run_s + self.sample_s + self.publish_s


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """What an engine has done since its model was loaded."""

    steps: tuple[StepProfile, ...] = ()
    cached_prompt_tokens: int = 0
    """Tokens of prompts that came out of the prefix cache."""
    preemptions: int = 0
    """How often a request gave its memory up to another one and was computed again."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """A model in memory."""

    max_request_tokens: int
    slots: int
    slots_used: int
    queue_capacity: int
    queue_length: int
    kv_cache_bytes: int
    device: str
    profile: EngineProfile = EngineProfile()


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model as one machine sees it."""

    id: str
    state: ModelState
    architecture: str
    quantization: str
    parameter_count: int
    context_length: int
    size_bytes: int
    created_unix_s: int
    deployment: Deployment | None = None


class LoadStage(Enum):
    """What a load is busy with."""

    DOWNLOADING = "downloading"
    CONVERTING = "converting"
    LOADING = "loading"
    READY = "ready"


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """One report of a load. ``total_bytes`` is 0 where it is not known; ``model`` comes with READY only."""

    stage: LoadStage
    completed_bytes: int = 0
    total_bytes: int = 0
    model: ModelInfo | None = None


def context_exceeded(prompt_tokens: int, limit: int) -> MantlerError:
    """The 400 for a prompt that leaves no room for a single token."""
    return MantlerError(
        ErrorCode.CONTEXT_LENGTH_EXCEEDED,
        f"The prompt has {prompt_tokens} tokens; this model takes at most {limit - 1}, "
        f"so that one token can follow within its {limit}.",
        param="messages",
    )


def _check_float(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    inside = math.isfinite(value) and (low < value if open_low else low <= value) and value <= high
    if not inside:
        bounds = f"above {low:g} and at most {high:g}" if open_low else f"between {low:g} and {high:g}"
        raise invalid(name, f"must be {bounds}, got {value:g}.")


def _check_int(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise invalid(name, f"must be between {low} and {high}, got {value}.")
