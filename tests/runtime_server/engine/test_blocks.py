from array import array

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runtime_server.engine.blocks import BlockPool, block_digest, root_digest
from runtime_server.engine.sequence import Sequence
from tests.runtime_server.engine.machine import GREEDY

DIGESTS = [block_digest(root_digest(None), array("i", [i])) for i in range(12)]


def filled(pool: BlockPool, *digests: bytes) -> list[int]:
    """New blocks with these contents, held once."""
    return [pool.share(pool.allocate(), digest) for digest in digests]


def test_a_released_block_is_found_until_it_is_needed() -> None:
    pool = BlockPool(2, 4)
    (block,) = filled(pool, DIGESTS[0])
    pool.release([block])
    assert pool.find(DIGESTS[0]) == block
    assert (pool.available, pool.cached) == (2, 1)
    assert pool.allocate() != block, "an empty block goes first"
    assert pool.allocate() == block
    assert pool.find(DIGESTS[0]) is None
    with pytest.raises(RuntimeError):
        pool.allocate()


def test_the_tail_of_what_was_used_longest_ago_goes_first() -> None:
    pool = BlockPool(5, 4)
    old, new = filled(pool, *DIGESTS[:3]), filled(pool, *DIGESTS[3:5])
    pool.release(old)
    pool.release(new)
    for block in old[:2]:
        pool.hold(block)
    pool.release(old[:2])
    assert [pool.allocate() for _ in range(5)] == [old[2], new[1], new[0], old[1], old[0]]


def test_equal_contents_become_one_block() -> None:
    pool = BlockPool(2, 4)
    (first,) = filled(pool, DIGESTS[0])
    (second,) = filled(pool, DIGESTS[0])
    assert first == second
    assert (pool.holders(first), pool.available) == (2, 1)


def test_a_block_without_known_content_is_empty_once_released() -> None:
    pool = BlockPool(1, 4)
    pool.release([pool.allocate()])
    assert (pool.available, pool.cached) == (1, 0)


def test_digests_tell_tokens_predecessors_and_salts_apart() -> None:
    roots = [root_digest(salt) for salt in (None, "", "a", "b", "no salt")]
    chains = [block_digest(root, array("i", tokens)) for root in roots for tokens in ([1, 2], [2, 1], [1, 3])]
    deeper = [block_digest(chain, array("i", [1, 2])) for chain in chains]
    assert len({*roots, *chains, *deeper}) == 5 + 15 + 15


def test_a_sequence_makes_each_digest_once_and_in_order() -> None:
    item = Sequence(prompt_ids=range(10), sampling=GREEDY, seed=0, max_tokens=9, cache_salt="s")
    expected = root_digest("s")
    for block in range(2):
        expected = block_digest(expected, array("i", range(4 * block, 4 * block + 4)))
        assert item.digest(block, 4) == expected
    assert item.digest(1, 4) is item.digest(1, 4)
    item.append(50)
    item.append(51)
    assert item.digest(2, 4) == block_digest(expected, array("i", [8, 9, 50, 51]))


def test_choices_make_the_digests_of_their_prompt_once_for_all() -> None:
    first = Sequence(prompt_ids=range(10), sampling=GREEDY, seed=0, max_tokens=9)
    second = Sequence(prompt_ids=range(10), sampling=GREEDY, seed=0, max_tokens=9, choice=1, sibling=first)
    alone = Sequence(prompt_ids=range(10), sampling=GREEDY, seed=0, max_tokens=9)
    for token_id, item in enumerate((first, second, alone)):
        for _ in range(6):
            item.append(token_id)
    # The third block begins with the end of the prompt and goes on with what was generated.
    apart = [first.digest(2, 4), second.digest(2, 4), alone.digest(2, 4)]
    assert len(set(apart)) == 3
    assert all(first.digest(block, 4) is second.digest(block, 4) for block in range(2))
    assert all(first.digest(block, 4) == alone.digest(block, 4) for block in range(2))
    assert second.digest(3, 4) == block_digest(second.digest(2, 4), array("i", [1, 1, 1, 1]))


class Pool(RuleBasedStateMachine):
    """Beside a model of who holds what, with every block's content written down."""

    BLOCKS = 6

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(self.BLOCKS, 4)
        self.held: list[list[int]] = []
        self.released: list[int] = []
        """Blocks in the order in which they have to go."""
        self.content: dict[int, bytes] = {}

    @precondition(lambda self: self.pool.available)
    @rule(digest=st.sampled_from(DIGESTS) | st.none())
    def allocate(self, digest: bytes | None) -> None:
        evicts = self.pool.available == self.pool.cached
        block = self.pool.allocate()
        assert not any(block in blocks for blocks in self.held), "a held block was given away"
        if evicts:
            assert block == self.released.pop(0)
            del self.content[block]
        assert block not in self.content, "a block with content went before an empty one"
        if digest is not None:
            kept = self.pool.share(block, digest)
            assert (kept == block) == (digest not in self.content.values())
            if kept in self.released:
                self.released.remove(kept)
            self.content[kept] = digest
            block = kept
        self.held.append([block])

    @rule(digest=st.sampled_from(DIGESTS))
    def hold(self, digest: bytes) -> None:
        block = self.pool.find(digest)
        assert (block is not None) == (digest in self.content.values())
        if block is not None:
            assert self.content[block] == digest
            self.pool.hold(block)
            self.held.append([block])
            if block in self.released:
                self.released.remove(block)

    @precondition(lambda self: len(self.held) > 1)
    @rule()
    def join(self) -> None:
        last = self.held.pop()
        if not set(last) & set(self.held[-1]):
            self.held[-1] += last
        else:
            self.held.append(last)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        blocks = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.pool.release(blocks)
        still = {block for others in self.held for block in others}
        self.released += [block for block in reversed(blocks) if block in self.content and block not in still]

    @invariant()
    def counts_are_right(self) -> None:
        for block in range(self.BLOCKS):
            assert self.pool.holders(block) == sum(block in blocks for blocks in self.held)
        assert self.pool.available == self.BLOCKS - len({block for blocks in self.held for block in blocks})
        assert self.pool.cached == len(self.released)


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
