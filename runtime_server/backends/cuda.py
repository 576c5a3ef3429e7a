"""Runs the decoder on a card: ONNX Runtime's CUDA provider, paged attention, captured graphs.

All that touches the card happens on one thread, which takes steps from a queue: the next one is there when one ends,
so that the card waits for no Python. A step may be launched before anybody looked at the one before it: what that one
drew is on the card.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from time import perf_counter_ns

import numpy as np

from runtime_server.backends.base import Candidates, Chunk, Floats
from runtime_server.backends.cuda_card import Card, CudaCard, Results, Sizes
from runtime_server.backends.cuda_plan import Planner
from runtime_server.backends.cuda_runtime import OUT_OF_MEMORY, CudaError
from runtime_server.backends.faults import UNREADABLE, damaged, unreadable
from runtime_server.models.cuda_format import block_tokens, kv_bytes_per_token
from runtime_server.models.decoder import DecoderConfig
from runtime_server.models.manifest import MODEL_FILE

FetchLogits = Callable[[int, list[int]], Floats]
"""Of a launch, the logits of some rows."""
_LIBRARY_FAILURE = re.compile(r"(?P<library>CU[A-Z]+) failure (?P<code>\d+): (?P<name>[^;]+?) *;")
"""How ONNX Runtime says that a call of one of NVIDIA's libraries failed."""
MakeCard = Callable[[Path, DecoderConfig, int, Sizes], Card]


class CudaBackend:
    """See :class:`runtime_server.backends.base.Backend`.

    A row's logits depend on what runs beside it in their last bits: the libraries choose their kernels by the size of
    a step.

    Args:
        folder: of the converted model.
        config: its shape.
        device_id: as CUDA counts the cards.
        blocks: of the KV cache.
        longest: tokens of one sequence, at most.
        max_batch: chunks of one step, at most.
        step_tokens: tokens of one step, at most.
        captures: whether steps in which everybody decodes run as captured graphs.
        make_card: what runs the plans.

    Raises: ``PullError`` where ``folder`` holds no model that ONNX Runtime can load, ``MemoryError`` where the card
    gives less memory than was planned with, ``CudaError`` where it does not work.
    """

    ahead = True

    def __init__(
        self,
        folder: Path,
        config: DecoderConfig,
        *,
        device_id: int,
        blocks: int,
        longest: int,
        max_batch: int,
        step_tokens: int,
        captures: bool = True,
        make_card: MakeCard = CudaCard,
    ) -> None:
        self.device = f"cuda:{device_id}"
        self.blocks = blocks
        self.block_tokens = block_tokens(config.head_dim)
        self.kv_cache_bytes = blocks * self.block_tokens * kv_bytes_per_token(config)
        self.exposed_ns = 0
        """Time that the card waited for steps that had been launched: between the end of one and the next."""
        self._planner = Planner(
            blocks=blocks, block_tokens=self.block_tokens, longest=longest, places=max_batch, captures=captures
        )
        self._launches = 0
        self._ended_ns = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"cuda:{device_id}")
        sizes = Sizes(blocks, max_batch, self._planner.longest_buffer(step_tokens + max_batch))
        try:
            self._card = self._thread.submit(_made, make_card, folder, config, device_id, sizes).result()
        except BaseException:
            self._thread.shutdown()
            raise
        self._longest = longest
        self._try(folder, self._largest_prompts(step_tokens, max_batch))
        self._try(folder, [Chunk([block], 0, [0], True) for block in range(min(blocks, max_batch))])

    def launch(self, chunks: Sequence[Chunk]) -> _Flight:
        """See :meth:`runtime_server.backends.base.Backend.launch`."""
        plan = self._planner.plan(chunks)
        self._launches += 1
        launched_ns = perf_counter_ns()

        def run() -> Results:
            self.exposed_ns += perf_counter_ns() - max(launched_ns, self._ended_ns)
            results = self._card.run(plan)
            self._ended_ns = perf_counter_ns()
            return results

        return _Flight(self._thread.submit(run), self._launches, self._logits)

    def close(self) -> None:
        """Frees weights and cache, after the steps that were launched."""
        self._thread.submit(self._card.close).result()
        self._thread.shutdown()

    def _logits(self, launch: int, rows: list[int]) -> Floats:
        if launch != self._launches:
            raise RuntimeError("the logits of a step are gone once another was launched")
        return self._thread.submit(self._card.logits, rows).result()

    def _largest_prompts(self, tokens: int, sequences: int) -> list[Chunk]:
        """As many tokens as a step can have, or the cache can take, in as few sequences as hold them."""
        chunks: list[Chunk] = []
        block = 0
        while tokens and block < self.blocks and len(chunks) < sequences:
            count = min(tokens, self._longest, (self.blocks - block) * self.block_tokens)
            needed = -(-count // self.block_tokens)
            chunks.append(Chunk(range(block, block + needed), 0, [0] * count, True))
            tokens, block = tokens - count, block + needed
        return chunks

    def _try(self, folder: Path, chunks: Sequence[Chunk]) -> None:
        """Runs a step that is as large as any: what is damaged or does not fit is an error now, not at a request.

        The memory between operators grows with the largest step so far, in pieces. Taken at once it is least.
        """
        try:
            logits = self.launch(chunks).output().logits(range(len(chunks)))
        except (*UNREADABLE, RuntimeError) as error:
            self.close()
            raise _fault(folder, error) from error
        if not np.isfinite(logits).all():
            self.close()
            raise damaged()


class _Flight:
    """See :class:`runtime_server.backends.base.Flight`."""

    def __init__(self, future: Future[Results], launch: int, logits: FetchLogits) -> None:
        self._future = future
        self._launch = launch
        self._logits = logits

    def output(self) -> _Output:
        """See :meth:`runtime_server.backends.base.Flight.output`."""
        return _Output(self._future.result()(), self._launch, self._logits)


class _Output:
    """See :class:`runtime_server.backends.base.Output`."""

    def __init__(self, candidates: Candidates, launch: int, logits: FetchLogits) -> None:
        self.candidates = candidates
        self._launch = launch
        self._logits = logits

    def logits(self, rows: Sequence[int]) -> Floats:
        """See :meth:`runtime_server.backends.base.Output.logits`."""
        return self._logits(self._launch, list(rows))


def _made(make: MakeCard, folder: Path, config: DecoderConfig, device_id: int, sizes: Sizes) -> Card:
    try:
        return make(folder, config, device_id, sizes)
    except (*UNREADABLE, CudaError) as error:
        raise _fault(folder, error) from error


def _fault(folder: Path, error: Exception) -> Exception:
    """What the user is told. ONNX Runtime has no types of its own for a card that is full or does not work."""
    full = isinstance(error, CudaError) and error.code == OUT_OF_MEMORY
    if full or "Failed to allocate memory" in str(error):
        return MemoryError(str(error))
    if isinstance(error, CudaError):
        return error
    if found := _LIBRARY_FAILURE.search(str(error)):
        return CudaError(found["library"], int(found["code"]), found["name"])
    return unreadable(folder / MODEL_FILE, error)
