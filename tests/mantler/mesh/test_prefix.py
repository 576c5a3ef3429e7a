"""Chains share what texts share, and the index remembers a bounded number of them."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mantler.mesh.affinity import AffinityIndex
from mantler.mesh.machine import MachineId
from mantler.mesh.prefix import BOUNDARIES, Prefix, chain, covered_bytes

A, B, C = MachineId("a"), MachineId("b"), MachineId("c")
texts = st.binary(max_size=6000)


def cut(text: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[start:end] for start, end in pairwise(ends)]


@given(texts, st.lists(st.integers(0, 10_000), max_size=8))
def test_how_the_bytes_are_cut_does_not_matter(text: bytes, places: list[int]) -> None:
    whole = chain([text], b"org")
    assert chain(cut(text, places), b"org") == whole
    assert whole.total_bytes == len(text)
    assert len(whole.hashes) == sum(boundary <= len(text) for boundary in BOUNDARIES)


@given(texts, texts, texts)
def test_chains_share_as_many_hashes_as_texts_share_chunks(common: bytes, one: bytes, other: bytes) -> None:
    first, second = common + b"1" + one, common + b"2" + other
    a, b = chain([first], b"").hashes, chain([second], b"").hashes
    shared = sum(boundary <= len(common) for boundary in BOUNDARIES)
    assert a[:shared] == b[:shared]
    assert not set(a[shared:]) & set(b[shared:])


def test_a_salt_separates() -> None:
    text = b"x" * 5000
    assert not set(chain([text], b"org-1").hashes) & set(chain([text], b"org-2").hashes)
    assert chain([text], b"s" * 10_000) == chain([text], b"s" * 10_000)


def test_a_chain_is_bounded() -> None:
    long = chain([b"x" * 4096] * 1000, b"")
    assert len(long.hashes) == len(BOUNDARIES) == 54
    assert long.total_bytes == 4096 * 1000
    assert covered_bytes(54) == BOUNDARIES[-1] == 144 * 1024
    assert covered_bytes(0) == 0


def prefix(*hashes: str) -> Prefix:
    return Prefix(tuple(one.encode() for one in hashes), 256 * len(hashes))


def test_matches_are_the_deepest_first_and_say_nothing_twice() -> None:
    index = AffinityIndex(100, max_machines=2)
    index.record(prefix("1", "2", "3", "4"), A)
    index.record(prefix("1", "2", "x"), B)
    assert list(index.matches(prefix("1", "2", "3", "4", "5"))) == [(4, (A,)), (2, (B, A))]
    assert list(index.matches(prefix("other"))) == []
    index.record(prefix("1"), C)
    assert list(index.matches(prefix("1"))) == [(1, (C, B))]
    index.record(prefix("1"), B)
    assert list(index.matches(prefix("1"))) == [(1, (B, C))]


@given(st.lists(st.tuples(st.text("ab", max_size=6), st.sampled_from([A, B, C]))), st.integers(1, 12))
def test_memory_is_bounded_and_what_is_left_is_true(requests: list[tuple[str, MachineId]], max_hashes: int) -> None:
    index = AffinityIndex(max_hashes, max_machines=2)
    sent: set[tuple[str, MachineId]] = set()

    def prefix_of(text: str) -> Prefix:
        return prefix(*(text[: end + 1] for end in range(len(text))))

    for text, one in requests:
        index.record(prefix_of(text), one)
        sent |= {(text[: end + 1], one) for end in range(len(text))}
        assert len(index) <= max_hashes
        found = list(index.matches(prefix_of(text)))
        assert len(text) == 0 or found, "the latest is always found, at least its beginning"
        for depth, machines in found:
            assert 1 <= len(machines) <= 2
            assert all((text[:depth], machine) in sent for machine in machines)
            assert machines[0] == one
