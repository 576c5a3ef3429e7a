"""A request for generated text, and the forms that its prompt takes."""

from __future__ import annotations

from dataclasses import dataclass, field

from mantler.errors import ErrorCode, MantlerError, invalid
from mantler.messages.chat import ChatPrompt
from mantler.messages.constraints import Constraint
from mantler.messages.ranges import check_int
from mantler.messages.sampling import LogprobsParams, SamplingParams, StopParams

MAX_REQUEST_ID_CHARS = 128
MAX_CHOICES = 128
"""Answers to one request. A model may take fewer: its slots and the places in its queue."""
MAX_PRIORITY = 100
"""Priorities go from minus this to this."""
MAX_CACHE_SALT_CHARS = 256


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
class ResumePoint:
    """Where an answer was cut off. What goes on is what would have come without the cut."""

    delivered: tuple[tuple[int, ...], ...]
    """Token ids of the deltas that arrived, one entry per choice."""
    finished: frozenset[int] = frozenset()
    """Indices of the choices that ended; nothing more comes of them."""


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
    resume: ResumePoint | None = None
    """Set where the request goes on with an answer that was cut off."""

    def __post_init__(self) -> None:
        printable = self.request_id.isascii() and self.request_id.isprintable()
        if not (printable and 1 <= len(self.request_id) <= MAX_REQUEST_ID_CHARS):
            raise invalid("request_id", f"must be 1 to {MAX_REQUEST_ID_CHARS} characters of printable ASCII.")
        if not self.model:
            raise invalid("model", "must name a model.")
        check_int("n", self.n, 1, MAX_CHOICES)
        check_int("priority", self.priority, -MAX_PRIORITY, MAX_PRIORITY)
        if self.cache_salt is not None and not 1 <= len(self.cache_salt) <= MAX_CACHE_SALT_CHARS:
            raise invalid(
                "cache_salt", f"must have 1 to {MAX_CACHE_SALT_CHARS} characters, got {len(self.cache_salt)}."
            )
        if self.resume is not None:
            self._check_resume(self.resume)

    def _check_resume(self, resume: ResumePoint) -> None:
        if len(resume.delivered) != self.n:
            raise invalid("resume.delivered", f"must have {self.n} entries, one per choice.")
        if not all(0 <= index < self.n for index in resume.finished):
            raise invalid("resume.finished", f"must hold indices of choices, from 0 to {self.n - 1}.")
        if len(resume.finished) == self.n:
            raise invalid("resume.finished", "must leave a choice to go on with.")
        if self.sampling.seed is None and self.sampling.temperature > 0:
            raise invalid("seed", "is required to resume at a temperature above 0.")


def context_exceeded(prompt_tokens: int, limit: int) -> MantlerError:
    """The 400 for a prompt that leaves no room for a single token."""
    return MantlerError(
        ErrorCode.CONTEXT_LENGTH_EXCEEDED,
        f"The prompt has {prompt_tokens} tokens; this model takes at most {limit - 1}, "
        f"so that one token can follow within its {limit}.",
        param="messages",
    )
