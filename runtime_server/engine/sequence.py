"""One choice of one request on its way through the engine."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import InitVar, dataclass, field

from mantler.messages import FinishReason, LogprobsParams, SamplingParams
from runtime_server.constraints.matcher import Matcher
from runtime_server.engine.adjustments import Adjustments
from runtime_server.engine.blocks import block_digest, root_digest
from runtime_server.engine.sampler import SamplingRow


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens, limits and progress. Changed by the scheduler only."""

    prompt_ids: InitVar[Iterable[int]]
    sampling: SamplingParams
    seed: int
    """64 bits; the request's own or a drawn one."""
    max_tokens: int
    """Tokens to generate at most, at least 1."""
    end_ids: frozenset[int] = frozenset()
    """Tokens that end the output. Empty where the request ignores them."""
    min_tokens: int = 0
    """No end token is drawn before this many tokens."""
    choice: int = 0
    priority: int = 0
    """Lower is sooner."""
    cache_salt: InitVar[str | None] = None
    """Computed blocks are shared with sequences of the same salt only."""
    sibling: InitVar[Sequence | None] = None
    """Another choice of the request, with the same prompt and salt. Digests of the prompt are made once for both."""
    matcher: Matcher | None = None
    """Follows the grammar that the output must match."""
    logprobs: LogprobsParams | None = None
    """Asks for log probabilities of the output's tokens."""
    delivered: InitVar[Iterable[int]] = ()
    """Output that is there already, of an answer that was cut off; less than ``max_tokens``."""

    token_ids: array[int] = field(init=False)
    """The prompt and what has been generated."""
    prompt_tokens: int = field(init=False)
    computed: int = field(default=0, init=False)
    """Tokens whose keys and values are in the blocks."""
    cached_tokens: int = field(default=0, init=False)
    """Tokens of the prompt that were found in the cache. Final once the first token is there."""
    block_ids: array[int] = field(init=False)
    """Blocks of the KV cache in the order of their tokens; none while the sequence waits."""
    rank: tuple[int, int] = field(default=(0, 0), init=False)
    """Lower is sooner; set when the sequence is queued."""
    preemptions: int = field(default=0, init=False)
    cancelled: bool = field(default=False, init=False)
    _adjustments: Adjustments | None = field(init=False)
    _prompt_digests: list[bytes] = field(init=False)
    """Of the root and of the full blocks of the prompt, so far as they were needed. One list for all siblings."""
    _output_digests: list[bytes] = field(default_factory=list, init=False)
    """Of the full blocks after those."""

    def __post_init__(
        self,
        prompt_ids: Iterable[int],
        cache_salt: str | None,
        sibling: Sequence | None,
        delivered: Iterable[int],
    ) -> None:
        self.token_ids = array("i", prompt_ids)
        self.prompt_tokens = len(self.token_ids)
        self.block_ids = array("i")
        self._adjustments = Adjustments.of(self.sampling, self.token_ids)
        self._prompt_digests = [root_digest(cache_salt)] if sibling is None else sibling._prompt_digests
        for token_id in delivered:
            self.append(token_id)

    @property
    def remaining(self) -> int:
        """Tokens that are there but not computed: 1 where the sequence decodes, more where it is prefilled."""
        return len(self.token_ids) - self.computed

    @property
    def output_tokens(self) -> int:
        """Tokens that were generated."""
        return len(self.token_ids) - self.prompt_tokens

    @property
    def output_ids(self) -> list[int]:
        """What was generated."""
        return self.token_ids[self.prompt_tokens :].tolist()

    @property
    def takes_likeliest(self) -> bool:
        """Whether the next token is the likeliest one, whatever else the logits are."""
        may_end = not self.end_ids or self.output_tokens >= self.min_tokens
        return self.sampling.temperature == 0 and self.matcher is None and self._adjustments is None and may_end

    def digest(self, block: int, block_tokens: int) -> bytes:
        """The digest of the sequence's block number ``block``, which must be full."""
        shared, own = self._prompt_digests, self._output_digests
        prompt_blocks = self.prompt_tokens // block_tokens
        while len(shared) <= min(block + 1, prompt_blocks):
            shared.append(self._digest_after(shared[-1], len(shared) - 1, block_tokens))
        if block < prompt_blocks:
            return shared[block + 1]
        while len(own) <= block - prompt_blocks:
            own.append(self._digest_after((own or shared)[-1], prompt_blocks + len(own), block_tokens))
        return own[block - prompt_blocks]

    def _digest_after(self, parent: bytes, block: int, block_tokens: int) -> bytes:
        start = block * block_tokens
        return block_digest(parent, self.token_ids[start : start + block_tokens])

    def sampling_row(self) -> SamplingRow:
        """What decides the next token, besides the logits. Raises ``MantlerError`` where the grammar gives up."""
        position = self.output_tokens
        banned = self.end_ids if position < self.min_tokens else frozenset()
        mask = None if self.matcher is None else self.matcher.mask()
        if mask is not None and banned and mask.leaves_none(banned):
            # A grammar that is satisfied ends the output before min_tokens: there is nothing else to say.
            banned = frozenset()
        return SamplingRow(
            self.sampling,
            self.seed,
            self.choice,
            position,
            banned=tuple(banned),
            mask=mask,
            adjustments=self._adjustments,
            logprobs=self.logprobs,
        )

    def follow(self, token_id: int) -> None:
        """Tells the grammar, before :meth:`append`, which token was drawn."""
        if self.matcher is not None and token_id not in self.end_ids:
            self.matcher.advance(token_id)

    def replay(self) -> None:
        """Tells the grammar of the output that was delivered before."""
        for token_id in self.output_ids:
            self.follow(token_id)

    def append(self, token_id: int) -> FinishReason | None:
        """Takes the next token; says whether it was the last one and why."""
        self.token_ids.append(token_id)
        if self._adjustments is not None:
            self._adjustments.add(token_id)
        if token_id in self.end_ids or (self.matcher is not None and self.matcher.complete):
            return FinishReason.STOP
        if self.output_tokens >= self.max_tokens:
            return FinishReason.LENGTH
        return None
