"""What became of the streams of a drill. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Heard:
    """What a client heard of one stream."""

    request: int
    """Which of the drill's requests it was."""
    tokens: list[str] = field(default_factory=list)
    done: bool = False
    """Whether it ended as streams do."""
    error: str | None = None
    """Why it did not, as the client was told; a code of Mantler's, or the kind of exception."""
    refused: bool = False
    """Whether it failed before it began, with a status that a client may try again after."""
    longest_silence_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """The sums over all streams."""

    started: int
    finished: int
    refused: int
    broken: int
    resumed: int
    tokens: int
    lost_tokens: int
    repeated_tokens: int
    faults: int
    silence_p50_s: float
    """The longest silence of a stream, over those that went on elsewhere: until the fault was noticed and mended."""
    silence_max_s: float
    errors: Mapping[str, int]

    @property
    def good(self) -> bool:
        """Whether no client noticed anything but a pause."""
        return not (self.broken or self.lost_tokens or self.repeated_tokens) and self.finished > 0


def verdict(streams: Sequence[Heard], expected: Mapping[int, Sequence[str]], *, resumed: int, faults: int) -> Verdict:
    """Compares ``streams`` with the undisturbed answers to their requests."""
    lost = repeated = 0
    errors: dict[str, int] = {}
    for stream in streams:
        if stream.error is not None:
            errors[stream.error] = errors.get(stream.error, 0) + 1
        if stream.done and stream.tokens != list(expected[stream.request]):
            missing, extra = _difference(list(expected[stream.request]), stream.tokens)
            lost += missing
            repeated += extra
    silences = sorted(stream.longest_silence_s for stream in streams if stream.done)[-max(1, resumed) :]
    return Verdict(
        started=len(streams),
        finished=sum(stream.done for stream in streams),
        refused=sum(stream.refused for stream in streams),
        broken=sum(not stream.done and not stream.refused for stream in streams),
        resumed=resumed,
        tokens=sum(len(stream.tokens) for stream in streams),
        lost_tokens=lost,
        repeated_tokens=repeated,
        faults=faults,
        silence_p50_s=silences[len(silences) // 2] if resumed and silences else 0.0,
        silence_max_s=silences[-1] if resumed and silences else 0.0,
        errors=errors,
    )


def _difference(expected: list[str], heard: list[str]) -> tuple[int, int]:
    """Tokens that are missing, and tokens that should not be there."""
    missing = extra = 0
    for kind, low, high, first, last in difflib.SequenceMatcher(None, expected, heard, autojunk=False).get_opcodes():
        if kind != "equal":
            missing += high - low
            extra += last - first
    return missing, extra
