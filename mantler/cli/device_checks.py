"""What ``mantler doctor`` says of the devices that models run on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mantler.cli.checks import Finding, Status
from mantler.cli.version import installed

if TYPE_CHECKING:
    from runtime_server.backends.devices import CudaState

PCI_DEVICES = Path("/sys/bus/pci/devices")
_NVIDIA = "0x10de"
_DISPLAY = "0x03"
"""The class of PCI devices that graphics cards have (https://pci-ids.ucw.cz/read/PD/03)."""


def packages() -> Iterable[Finding]:
    """Whether one build of ONNX Runtime is installed. Two have their files in the same folder."""
    if installed("onnxruntime") and installed("onnxruntime-gpu"):
        yield Finding(
            "onnxruntime",
            Status.WARN,
            "onnxruntime and onnxruntime-gpu are both installed, and overwrite each other",
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'mantler[gpu]', or 'mantler[cpu]'",
        )


def devices(wish: str) -> Iterable[Finding]:
    """Whether ``wish``, the setting ``device``, can be had, and what CUDA lacks where a card of NVIDIA's is there."""
    try:
        from runtime_server.backends.cuda_state import cuda_state
    except ImportError:  # of ONNX Runtime, which has a finding of its own
        return []
    return report(wish, cuda_state(), card_is_there=has_card())


def report(wish: str, cuda: CudaState, *, card_is_there: bool) -> Iterable[Finding]:
    """The findings that follow from ``cuda``."""
    from runtime_server.backends.devices import DeviceError, card_for

    wants_cuda = wish.startswith("cuda")
    if cuda.driver is not None:
        version = ".".join(map(str, cuda.driver))
        yield Finding("device", Status.OK, f"NVIDIA's driver serves CUDA up to {version}")
    for card in cuda.cards:
        yield Finding("device", Status.OK, str(card))
    if cuda.missing and (wants_cuda or card_is_there or cuda.cards):
        for missing in cuda.missing:
            yield Finding("device", Status.FAIL if wants_cuda else Status.WARN, missing.what, missing.remedy)
    elif not cuda.cards:
        yield Finding("device", Status.OK, "no card of NVIDIA's: models run on the CPU")
    else:
        try:
            card_for(wish if wants_cuda else "cuda", cuda)
        except DeviceError as error:
            yield Finding("device", Status.FAIL if wants_cuda else Status.WARN, str(error), error.hint)


def has_card(pci_devices: Path = PCI_DEVICES) -> bool:
    """Whether the machine has a graphics card of NVIDIA's, with a driver or without; Linux only."""
    for device in pci_devices.glob("*"):
        try:
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            continue
        if vendor == _NVIDIA and kind.startswith(_DISPLAY):
            return True
    return False
