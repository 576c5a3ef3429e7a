"""What a request changes in its logits before tokens are drawn: biases, and penalties on what was said already."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mantler.messages import SamplingParams

MIN_REPETITION_PENALTY = 1e-30
"""A logit divided by less would not be finite."""


class Adjustments:
    """The biases and penalties of one choice, with how often it said each token.

    Bias comes first, then the repetition penalty (Keskar et al., "CTRL", 2019) on the tokens of prompt and output, then
    OpenAI's frequency and presence penalties on those of the output. Each token costs what it adds, and each step what
    the different tokens so far cost, whatever the vocabulary: some 10 µs for 600 of them, so that rows are gone
    through one by one.

    Args:
        prompt_ids: below the size of the vocabulary, as those of the bias must be.
    """

    def __init__(self, params: SamplingParams, prompt_ids: Sequence[int]) -> None:
        self._penalises = params.penalises
        self._frequency = np.float32(params.frequency_penalty)
        self._presence = np.float32(params.presence_penalty)
        self._repetition = np.float32(max(params.repetition_penalty, MIN_REPETITION_PENALTY))
        self._bias_ids = np.array([token_id for token_id, _ in params.logit_bias], np.int64)
        self._biases = np.array([bias for _, bias in params.logit_bias], np.float32)
        seen = list(dict.fromkeys(prompt_ids)) if params.repetition_penalty != 1.0 else []
        self._places = {token_id: place for place, token_id in enumerate(seen)}
        # The first len(_places) entries count; the rest is room to grow.
        self._ids = np.array(seen, np.int64)
        self._counts = np.zeros(len(seen), np.float32)

    @classmethod
    def of(cls, params: SamplingParams, prompt_ids: Sequence[int]) -> Adjustments | None:
        """``None`` where ``params`` change no logits."""
        return cls(params, prompt_ids) if params.penalises or params.logit_bias else None

    def add(self, token_id: int) -> None:
        """Counts a token of the output."""
        if not self._penalises:
            return
        place = self._places.setdefault(token_id, len(self._places))
        if place == len(self._ids):
            room = max(64, place)
            self._ids = np.concatenate([self._ids, np.zeros(room, np.int64)])
            self._counts = np.concatenate([self._counts, np.zeros(room, np.float32)])
        self._ids[place] = token_id
        self._counts[place] += 1

    def apply(self, logits: NDArray[np.float32]) -> None:
        """Changes logits ``[vocab_size]`` in place."""
        logits[self._bias_ids] += self._biases
        if not self._places:
            return
        ids, counts = self._ids[: len(self._places)], self._counts[: len(self._places)]
        values = logits[ids]
        if self._repetition != 1:
            values = np.where(values > 0, values / self._repetition, values * self._repetition)
        values -= self._frequency * counts + self._presence * (counts > 0)
        logits[ids] = values
