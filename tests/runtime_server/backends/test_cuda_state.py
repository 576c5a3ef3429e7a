from pathlib import Path

import pytest

from runtime_server.backends import providers
from runtime_server.backends.cuda_driver import NoDriverError, read_driver
from runtime_server.backends.cuda_state import PROVIDER_REMEDY, cuda_state
from runtime_server.backends.devices import CudaState
from tests import cuda_library


def state(folder: Path, **driver: int) -> CudaState:
    library = str(cuda_library.build(folder, **driver))
    return cuda_state(lambda: read_driver(library))


def provider(monkeypatch: pytest.MonkeyPatch, *, missing: list[str]) -> None:
    monkeypatch.setattr(providers, "installed", lambda: ("1.31.1", (providers.CUDA, "CPUExecutionProvider")))
    monkeypatch.setattr(providers, "load_cuda_libraries", lambda: missing)


def test_without_a_driver_nothing_else_is_looked_for() -> None:
    def none() -> None:
        raise NoDriverError

    found = cuda_state(none)  # type: ignore[arg-type]
    assert [missing.what for missing in found.missing] == ["no driver of NVIDIA's"]
    assert "driver" in found.missing[0].remedy
    assert found.driver is None


def test_all_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provider(monkeypatch, missing=[])
    found = state(tmp_path)
    assert not found.missing
    assert len(found.cards) == 2


@pytest.mark.parametrize(
    ("driver", "says", "remedy"),
    [
        ({"init": 100}, "sees no card", "CUDA_VISIBLE_DEVICES"),
        ({"cards": 0}, "sees no card", "nvidia-smi"),
        ({"init": 803}, "does not work: cuInit failed with 803", "nvidia-smi"),
        ({"version": 12080}, "serves CUDA up to 12.8, and 13.0 is needed", "580"),
    ],
)
def test_a_driver_that_will_not_do(
    driver: dict[str, int], says: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider(monkeypatch, missing=[])
    (missing,) = state(tmp_path, **driver).missing
    assert says in missing.what
    assert remedy in missing.remedy


def test_the_package_for_the_cpu_has_no_provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "installed", lambda: ("1.32.0", ("CPUExecutionProvider",)))
    (missing,) = state(tmp_path).missing
    assert missing.remedy == PROVIDER_REMEDY


def test_each_library_that_is_missing_has_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provider(monkeypatch, missing=["libcublas.so.13", "libcudnn.so.9"])
    cublas, cudnn = state(tmp_path).missing
    assert "'nvidia-cublas>=13,<14'" in cublas.remedy
    assert "'nvidia-cudnn-cu13>=9,<10'" in cudnn.remedy


def test_libraries_that_are_not_there_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(providers, "CUDA_LIBRARIES", {"libc.so.6": "", "libnone.so.1": "none"})
    assert providers.load_cuda_libraries() == ["libnone.so.1"]
    assert capsys.readouterr().out == ""
