"""Where the time of steps goes: counters that the engine's thread adds to once per step."""

from __future__ import annotations

from mantler.messages import EngineProfile, StepProfile

_NS = 1e-9


class StepCounters:
    """Sums over the steps of similar size. Not thread-safe."""

    def __init__(self) -> None:
        self._sums: dict[tuple[int, bool], list[int]] = {}

    def add(self, sequences: int, prompt_tokens: int, sampled: int, times_ns: tuple[int, int, int, int, int]) -> None:
        """Counts one step.

        Args:
            sequences: that had a part in it.
            prompt_tokens: tokens of prompts that it computed.
            sampled: tokens that it drew.
            times_ns: when schedule began, run began, sample began, publish began, and when it ended.
        """
        size = (sequences - 1).bit_length()
        sums = self._sums.setdefault((size, prompt_tokens > 0), [0] * 7)
        begin, run, sample, publish, end = times_ns
        sums[0] += 1
        sums[1] += prompt_tokens
        sums[2] += sampled
        sums[3] += run - begin
        sums[4] += sample - run
        sums[5] += publish - sample
        sums[6] += end - publish

    def profile(self, *, cached_prompt_tokens: int, preemptions: int) -> EngineProfile:
        """What has been counted so far, small steps first."""
        steps = [
            StepProfile(
                max_sequences=1 << size,
                prompts=prompts,
                steps=sums[0],
                prompt_tokens=sums[1],
                sampled_tokens=sums[2],
                schedule_s=sums[3] * _NS,
                run_s=sums[4] * _NS,
                sample_s=sums[5] * _NS,
                publish_s=sums[6] * _NS,
            )
            for (size, prompts), sums in sorted(self._sums.items())
        ]
        return EngineProfile(tuple(steps), cached_prompt_tokens, preemptions)
