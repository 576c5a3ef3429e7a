"""A mesh that is simulated: machines with slots, a queue and a cache of prefixes, and the requests of streams.

A prompt is a beginning that a group of streams shares, what the stream has said so far, and something new. Its text
is made up of blocks of 256 bytes, some 64 tokens, which is what a machine's cache holds.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections import OrderedDict
from dataclasses import dataclass
from itertools import accumulate

BLOCK_BYTES = 256
BLOCK_TOKENS = 64

STRIDE = 1 << 12
"""A block is a number: that of its group or stream times this, plus its place."""
PREFILL_TOKENS_PER_S = 8000.0
DECODE_TOKENS_PER_S = 30.0
"""Of one stream."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What streams ask."""

    name: str
    groups_per_machine: int
    """Beginnings that streams share, for each machine of the mesh."""
    zipf: float
    """The exponent of the groups' popularity: 0 makes all alike."""
    group_blocks: int
    turn_blocks: int
    """New in each turn, the answer to the turn before included."""
    turns: int
    output_tokens: int


SHARED = Workload("shared", 100, 1.0, group_blocks=12, turn_blocks=2, turns=1, output_tokens=96)
SKEWED = Workload("skewed", 100, 1.6, group_blocks=12, turn_blocks=2, turns=1, output_tokens=96)
CHAT = Workload("chat", 100, 1.0, group_blocks=6, turn_blocks=3, turns=4, output_tokens=96)
WORKLOADS = {workload.name: workload for workload in (SHARED, SKEWED, CHAT)}


@dataclass(frozen=True, slots=True)
class Turn:
    """One request."""

    stream: int
    group: int
    number: int
    blocks: tuple[int, ...]
    text: tuple[bytes, ...]
    output_tokens: int

    @property
    def prompt_tokens(self) -> int:
        """Of the whole prompt, cached or not."""
        return len(self.blocks) * BLOCK_TOKENS


class Streams:
    """Makes the turns of streams, the same ones for the same seed."""

    def __init__(self, workload: Workload, machines: int, seed: int) -> None:
        self._workload = workload
        self._draw = random.Random(seed)
        self._groups = range(workload.groups_per_machine * machines)
        self._weights = list(accumulate(1 / (group + 1) ** workload.zipf for group in self._groups))
        self._made = 0

    def first(self) -> Turn:
        """The first turn of a new stream."""
        self._made += 1
        group = self._draw.choices(self._groups, cum_weights=self._weights)[0]
        return self._turn(self._made, group, 1)

    def following(self, turn: Turn) -> Turn:
        """The stream's next turn, or the first one of another stream."""
        if turn.number == self._workload.turns:
            return self.first()
        return self._turn(turn.stream, turn.group, turn.number + 1)

    def pause_s(self) -> float:
        """How long a reader takes before the next turn."""
        return self._draw.expovariate(1 / 2.0)

    def _turn(self, stream: int, group: int, number: int) -> Turn:
        workload = self._workload
        own = number * workload.turn_blocks
        shared_at, own_at = -(group + 1) * STRIDE, stream * STRIDE
        blocks = (*range(shared_at, shared_at + workload.group_blocks), *range(own_at, own_at + own))
        text = (_text(f"group {group}", workload.group_blocks), _text(f"stream {stream}", own))
        output = max(1, round(self._draw.expovariate(1 / workload.output_tokens)))
        return Turn(stream, group, number, blocks, text, min(output, 4 * workload.output_tokens))


def _text(name: str, blocks: int) -> bytes:
    return hashlib.shake_128(name.encode()).digest(blocks * BLOCK_BYTES)


class BlockCache:
    """Blocks of prompts, the least recently used of which give way."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def take(self, blocks: tuple[int, ...]) -> int:
        """Puts a prompt's blocks in. Returns how many of its first ones were there."""
        hits = 0
        for block in blocks:
            if block not in self._blocks:
                break
            hits += 1
        # The end of a prompt gives way before its beginning, without which it would be worth nothing.
        for block in reversed(blocks):
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._capacity:
            self._blocks.popitem(last=False)
        return hits


class SimulatedMachine:
    """Runs as many requests as it has slots; others wait in line. All its slots decode at the same speed."""

    def __init__(self, slots: int, cache_blocks: int) -> None:
        self._cache = BlockCache(cache_blocks)
        self._free_at_s = [0.0] * slots
        self.worked_s = 0.0
        """Time of slots that requests took."""
        self.hit_blocks = 0
        self.blocks = 0

    def run(self, turn: Turn, now_s: float) -> float:
        """Takes a request in. Returns when it is done."""
        hits = self._cache.take(turn.blocks)
        self.hit_blocks += hits
        self.blocks += len(turn.blocks)
        prefill_s = (len(turn.blocks) - hits) * BLOCK_TOKENS / PREFILL_TOKENS_PER_S
        took_s = prefill_s + turn.output_tokens / DECODE_TOKENS_PER_S
        done_s = max(now_s, heapq.heappop(self._free_at_s)) + took_s
        heapq.heappush(self._free_at_s, done_s)
        self.worked_s += took_s
        return done_s
