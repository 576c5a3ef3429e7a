import numpy as np
import pytest

from tests.philox import philox4x32, uniform


# Known answers of the authors' Random123 library, kat_vectors, "philox4x32 10".
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]) -> None:
    words = philox4x32(np.array(counter, np.uint64)[:, None], np.array(key, np.uint64)[:, None])
    assert tuple(words[:, 0].tolist()) == expected


def _uniform(seeds: list[int], choices: list[int], positions: list[int]) -> list[float]:
    numbers: list[float] = uniform(
        np.array(seeds, np.uint64), np.array(choices, np.uint64), np.array(positions, np.uint64)
    ).tolist()
    return numbers


def test_a_number_does_not_depend_on_its_neighbours() -> None:
    alone = _uniform([7], [0], [3])
    assert _uniform([1, 7, 9], [0, 0, 0], [0, 3, 8])[1:2] == alone


def test_seed_choice_and_position_each_matter() -> None:
    numbers = _uniform([7, 7, 7, 8, 7 + 2**40], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0])
    assert len(set(numbers)) == 5


def test_numbers_are_uniform() -> None:
    count = 20_000
    numbers = np.array(_uniform([3] * count, [0] * count, list(range(count))))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    histogram, _ = np.histogram(numbers, bins=20, range=(0, 1))
    # Chi-square with 19 degrees of freedom: 43.8 is its 99.9 % quantile; the numbers are fixed, so this cannot flake.
    assert ((histogram - count / 20) ** 2 / (count / 20)).sum() < 43.8
