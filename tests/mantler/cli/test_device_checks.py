from pathlib import Path

import pytest

from mantler.cli import device_checks
from mantler.cli.checks import Finding, Status
from runtime_server.backends.cuda_driver import Card
from runtime_server.backends.devices import CudaState, Missing
from tests.mantler.cli.conftest import Mantler

CARD = Card(0, "Test Card", (8, 9), 24 * 10**9, 20 * 10**9)
NO_DRIVER = CudaState(missing=(Missing("no driver", "install it"),))
NO_PROVIDER = CudaState((CARD,), (Missing("no provider", "pip install it"), Missing("no cuDNN", "get it")), (13, 0))


def report(wish: str, cuda: CudaState, *, card_is_there: bool = False) -> list[Finding]:
    return list(device_checks.report(wish, cuda, card_is_there=card_is_there))


def test_without_a_card_there_is_nothing_to_complain_of() -> None:
    (finding,) = report("auto", NO_DRIVER)
    assert (finding.status, finding.detail, finding.hint) == (
        Status.OK, "no card of NVIDIA's: models run on the CPU", None
    )  # fmt: skip


def test_a_card_without_a_driver_is_told() -> None:
    (finding,) = report("auto", NO_DRIVER, card_is_there=True)
    assert (finding.status, finding.detail, finding.hint) == (Status.WARN, "no driver", "install it")


def test_what_is_asked_for_and_missing_is_broken() -> None:
    (finding,) = report("cuda", NO_DRIVER)
    assert finding.status is Status.FAIL


def test_each_missing_part_has_a_line_of_its_own() -> None:
    driver, card, provider, cudnn = report("auto", NO_PROVIDER)
    assert driver.detail == "NVIDIA's driver serves CUDA up to 13.0"
    assert card.detail == "cuda:0 Test Card (8.9), 20.0 of 24.0 GB free"
    assert (provider.status, provider.hint) == (Status.WARN, "pip install it")
    assert (cudnn.status, cudnn.detail) == (Status.WARN, "no cuDNN")


def test_a_machine_that_is_ready_has_two_good_lines() -> None:
    cuda = CudaState((CARD,), driver=(13, 0))
    assert [finding.status for finding in report("auto", cuda)] == [Status.OK, Status.OK]
    assert report("cuda:3", cuda)[-1].detail == "there is no cuda:3: this machine has only cuda:0"
    assert report("cuda:3", cuda)[-1].status is Status.FAIL


def test_cards_are_found_on_the_bus(tmp_path: Path) -> None:
    for name, vendor, kind in (("a", "0x8086", "0x030000"), ("b", "0x10de", "0x040300"), ("c", None, "0x030000")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "class").write_text(f"{kind}\n")
        if vendor:
            (tmp_path / name / "vendor").write_text(f"{vendor}\n")
    assert not device_checks.has_card(tmp_path)
    (tmp_path / "b" / "class").write_text("0x030200\n")
    assert device_checks.has_card(tmp_path)
    assert not device_checks.has_card(tmp_path / "none")


def test_two_builds_of_onnx_runtime_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_checks, "installed", lambda package: "1.32.0")
    (finding,) = device_checks.packages()
    assert finding.status is Status.WARN
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in str(finding.hint)
    monkeypatch.setattr(device_checks, "installed", lambda package: "1.32.0" if package == "onnxruntime" else None)
    assert not list(device_checks.packages())


def test_doctor_takes_the_device(mantler: Mantler) -> None:
    result = mantler("doctor", "--device", "cuda:x")
    assert "--device: must be auto, cpu, cuda or cuda:N" in result.out
