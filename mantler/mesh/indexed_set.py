"""A set that also has positions, so that a random member costs as little as a look-up."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Generic, TypeVar, overload

T = TypeVar("T", bound=Hashable)


class IndexedSet(Sequence[T], Generic[T]):
    """Adds, discards, finds and indexes in O(1). The order means nothing and changes with every discard."""

    def __init__(self) -> None:
        self._members: list[T] = []
        self._positions: dict[T, int] = {}

    def add(self, member: T) -> None:
        """Adds ``member`` if it is not there."""
        if member not in self._positions:
            self._positions[member] = len(self._members)
            self._members.append(member)

    def discard(self, member: T) -> None:
        """Removes ``member`` if it is there: the last one takes its place."""
        position = self._positions.pop(member, None)
        if position is None:
            return
        last = self._members.pop()
        if position < len(self._members):
            self._members[position] = last
            self._positions[last] = position

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, member: object) -> bool:
        return member in self._positions

    def __iter__(self) -> Iterator[T]:
        return iter(self._members)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        return self._members[index]
