"""Looks for what CUDA needs on this machine: the driver, a card, the provider, its libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from runtime_server.backends import providers
from runtime_server.backends.cuda_driver import CudaDriverError, Driver, NoDriverError, read_driver
from runtime_server.backends.devices import CudaState, Missing

NEEDED_CUDA = (13, 0)
"""What onnxruntime-gpu is built with."""
DRIVER_REMEDY = (
    "install NVIDIA's driver 580 or newer: `sudo ubuntu-drivers install` on Ubuntu, "
    "`sudo apt-get install nvidia-driver` on Debian"
)
PROVIDER_REMEDY = "pip uninstall -y onnxruntime && pip install --force-reinstall 'mantler[gpu]'"


def cuda_state(read: Callable[[], Driver] = read_driver) -> CudaState:
    """What there is and what is missing, the most basic first. Loads CUDA's libraries where a card is there."""
    try:
        driver = read()
    except NoDriverError:
        return CudaState(missing=(Missing("no driver of NVIDIA's", DRIVER_REMEDY),))
    except CudaDriverError as error:
        fault = Missing(f"NVIDIA's driver does not work: {error}", "`nvidia-smi` may say more")
        return CudaState(missing=(fault,))
    return CudaState(driver.cards, tuple(_missing(driver)), driver.cuda_version)


def _missing(driver: Driver) -> Iterator[Missing]:
    if not driver.cards:
        remedy = "`nvidia-smi` lists the cards; CUDA_VISIBLE_DEVICES may hide them"
        yield Missing("NVIDIA's driver sees no card", remedy)
        return
    if driver.cuda_version < NEEDED_CUDA:
        have, need = (".".join(map(str, version)) for version in (driver.cuda_version, NEEDED_CUDA))
        yield Missing(f"NVIDIA's driver serves CUDA up to {have}, and {need} is needed", DRIVER_REMEDY)
    _, names = providers.installed()
    if providers.CUDA not in names:
        yield Missing("the installed ONNX Runtime has no CUDA provider", PROVIDER_REMEDY)
        return
    for library in providers.load_cuda_libraries():
        package = providers.CUDA_LIBRARIES[library]
        yield Missing(f"{library} cannot be loaded", f"pip install --force-reinstall '{package}'")
