"""A model as one machine sees it: its state, what its engine has done, and how far a load is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


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
    held_tokens: int = 0
    """Of running and waiting requests, prompts and outputs together."""


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
