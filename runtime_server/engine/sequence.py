"""One choice of one request on its way through the engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from mantler.messages import FinishReason, SamplingParams
from runtime_server.engine.sampler import SamplingRow


@dataclass(slots=True, eq=False)
class Sequence:
    """Prompt, limits and progress. Changed by the scheduler only."""

    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    seed: int
    """64 bits; the request's own or a drawn one."""
    max_tokens: int
    """Tokens to generate at most, at least 1; prompt and output fit the slot."""
    end_ids: frozenset[int] = frozenset()
    """Tokens that end the output. Empty where the request ignores them."""
    min_tokens: int = 0
    """No end token is drawn before this many tokens."""
    choice: int = 0
    output_ids: list[int] = field(default_factory=list)
    computed: int = 0
    """Tokens whose keys and values are in the slot."""
    slot: int | None = None
    """Set while the sequence runs."""
    cancelled: bool = False

    @property
    def prefilling(self) -> bool:
        """Whether part of the prompt has not been computed yet."""
        return self.computed < len(self.prompt_ids)

    def sampling_row(self) -> SamplingRow:
        """What decides the next token, besides the logits."""
        early = len(self.output_ids) < self.min_tokens
        return SamplingRow(
            params=self.sampling,
            seed=self.seed,
            choice=self.choice,
            position=len(self.output_ids),
            banned=tuple(self.end_ids) if early else (),
        )

    def append(self, token_id: int) -> FinishReason | None:
        """Takes the next token; says whether it was the last one and why."""
        self.output_ids.append(token_id)
        if token_id in self.end_ids:
            return FinishReason.STOP
        if len(self.output_ids) >= self.max_tokens:
            return FinishReason.LENGTH
        return None
