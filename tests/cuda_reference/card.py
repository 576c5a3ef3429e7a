"""A card that computes with numpy: what it takes is what the real one takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime_server.backends.base import Candidates, Floats
from runtime_server.backends.cuda_card import Results, Sizes
from runtime_server.backends.cuda_plan import StepPlan, check
from runtime_server.models import cuda_operators
from runtime_server.models.cuda_format import block_tokens
from runtime_server.models.decoder import DecoderConfig
from runtime_server.models.manifest import MODEL_FILE
from tests.cuda_reference.executor import NumpySession


class NumpyCard:
    """See :class:`runtime_server.backends.cuda_card.Card`.

    In fp32 where the graph was built so. A captured graph is one whose shape and bounds never change again, and which
    runs twice when it is captured.
    """

    def __init__(self, folder: Path, config: DecoderConfig, device_id: int, sizes: Sizes) -> None:
        self._session = NumpySession(folder / MODEL_FILE)
        self.nodes = self._session.nodes
        shape = (sizes.blocks + 1, block_tokens(config.head_dim), config.kv_heads, config.head_dim)
        names = [name for name in self._session.inputs if "_cache." in name]
        self.caches: dict[str, NDArray[Any]] = {name: np.zeros(shape, cuda_operators.BF16) for name in names}
        self._sizes = sizes
        self._captured: dict[int, StepPlan] = {}
        self._sampled = np.zeros(sizes.rows, np.int32)
        self._logits = np.zeros((0, config.vocab_size), np.float32)
        self.plans: list[StepPlan] = []
        self.closed = False

    def run(self, plan: StepPlan) -> Results:
        self.plans.append(plan)
        assert len(plan.integers) <= self._sizes.integers, "more than was reserved"
        assert plan.shape.rows <= self._sizes.rows, "more rows than were reserved"
        check(plan)
        runs = 1
        if plan.capture is not None:
            runs = 1 if plan.capture.number in self._captured else 2
            first = self._captured.setdefault(plan.capture.number, plan)
            assert (first.shape, first.bounds) == (plan.shape, plan.bounds), "a capture of another step"
        previous = self._sampled.copy()
        feeds = {name: plan.input(name) for name in plan.shape.sizes()}
        for _ in range(runs):
            feeds |= {**self.caches, "previous_tokens": previous, "attention_bounds": plan.bounds.array()}
            found = dict(zip(self._session.outputs, self._session.run(None, feeds), strict=True))
        self._sampled[: plan.shape.rows] = found["sampled"]
        self._logits = found["logits"]
        rows = plan.rows
        return lambda: Candidates(
            found["top_ids"][:rows], found["top_values"][:rows], found["logsumexp"][:rows, 0].astype(np.float32)
        )

    def logits(self, rows: list[int]) -> Floats:
        return self._logits[rows]

    def close(self) -> None:
        self.closed = True
