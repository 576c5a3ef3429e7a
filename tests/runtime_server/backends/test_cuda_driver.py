import ctypes
from pathlib import Path

import pytest

from runtime_server.backends.cuda_driver import Card, CudaDriverError, Driver, NoDriverError, read_driver
from tests import cuda_library


def test_the_driver_tells_its_version_and_cards(tmp_path: Path) -> None:
    library = cuda_library.build(tmp_path, version=13010)
    free, total = 20 * 10**9, 24 * 10**9
    cards = (Card(0, "Test Card", (8, 9), total, free), Card(1, "Other Card", (8, 9), total, free))
    assert read_driver(str(library)) == Driver((13, 1), cards)
    assert str(cards[0]) == "cuda:0 Test Card (8.9), 20.0 of 24.0 GB free"
    assert ctypes.CDLL(str(library)).test_contexts() == 0


def test_a_driver_without_cards_is_no_error(tmp_path: Path) -> None:
    assert read_driver(str(cuda_library.build(tmp_path, version=12080, init=100))) == Driver((12, 8), ())


def test_a_machine_without_a_driver(tmp_path: Path) -> None:
    with pytest.raises(NoDriverError):
        read_driver(str(tmp_path / "libcuda.so.1"))


def test_a_driver_that_fails_is_quoted_by_its_own_name(tmp_path: Path) -> None:
    library = cuda_library.build(tmp_path, memory_result=2)
    with pytest.raises(CudaDriverError, match=r"cuMemGetInfo_v2 failed with CUDA_ERROR_OUT_OF_MEMORY \(2\)"):
        read_driver(str(library))
    # What was retained for the question has been given back.
    assert ctypes.CDLL(str(library)).test_contexts() == 0


def test_a_fault_without_a_name_has_its_number(tmp_path: Path) -> None:
    with pytest.raises(CudaDriverError, match="cuInit failed with 999"):
        read_driver(str(cuda_library.build(tmp_path, init=999)))


def test_a_library_that_is_not_the_drivers(tmp_path: Path) -> None:
    with pytest.raises(CudaDriverError, match="no cuDriverGetVersion"):
        read_driver("libc.so.6")
