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
class Change:
    """The facade has noticed that a machine went or came."""

    at_s: float
    machine: str
    online: bool


@dataclass(frozen=True, slots=True)
class Suffered:
    """One fault, as it happened."""

    machine: str
    began_s: float
    mended_s: float
    """When the machine served again, as far as it knew."""


@dataclass(frozen=True, slots=True)
class Times:
    """How long something took, over all faults that it followed. Seconds."""

    count: int
    p50_s: float
    max_s: float


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
    detection: Times
    """From a fault until the facade knew."""
    recovery: Times
    """From its end until the facade used the machine again."""
    errors: Mapping[str, int]

    @property
    def good(self) -> bool:
        """Whether no client noticed anything but a pause."""
        return not (self.broken or self.lost_tokens or self.repeated_tokens) and self.finished > 0


def verdict(
    streams: Sequence[Heard],
    expected: Mapping[int, Sequence[str]],
    *,
    resumed: int,
    faults: Sequence[Suffered],
    changes: Sequence[Change] = (),
) -> Verdict:
    """Compares ``streams`` with the undisturbed answers to their requests, and ``changes`` with ``faults``."""
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
        faults=len(faults),
        silence_p50_s=silences[len(silences) // 2] if resumed and silences else 0.0,
        silence_max_s=silences[-1] if resumed and silences else 0.0,
        detection=_times([_wait_s(changes, fault.machine, fault.began_s, online=False) for fault in faults]),
        recovery=_times([_wait_s(changes, fault.machine, fault.mended_s, online=True) for fault in faults]),
        errors=errors,
    )


def _wait_s(changes: Sequence[Change], machine: str, since_s: float, *, online: bool) -> float | None:
    """Until the machine was seen to be so: none where it was so already, ``None`` where that never came."""
    seen = [change for change in changes if change.machine == machine]
    before = [change.online for change in seen if change.at_s <= since_s]
    if before and before[-1] == online:
        return 0.0
    return next((change.at_s - since_s for change in seen if change.at_s > since_s and change.online == online), None)


def _times(waits: Sequence[float | None]) -> Times:
    known = sorted(wait for wait in waits if wait is not None)
    return Times(len(known), known[len(known) // 2], known[-1]) if known else Times(0, 0.0, 0.0)


def _difference(expected: list[str], heard: list[str]) -> tuple[int, int]:
    """Tokens that are missing, and tokens that should not be there."""
    missing = extra = 0
    for kind, low, high, first, last in difflib.SequenceMatcher(None, expected, heard, autojunk=False).get_opcodes():
        if kind != "equal":
            missing += high - low
            extra += last - first
    return missing, extra
