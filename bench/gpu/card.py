"""What card the figures were measured on."""

from __future__ import annotations

from pathlib import Path

from runtime_server.backends.cuda_driver import CudaDriverError, NoDriverError, read_driver

_DRIVER = Path("/proc/driver/nvidia/version")


def card(device: str) -> dict[str, str]:
    """Names and values for a report; none for ``cpu``."""
    if device == "cpu":
        return {}
    try:
        driver = read_driver()
    except (NoDriverError, CudaDriverError) as error:
        return {"card": f"none: {error}"}
    index = int(device.partition(":")[2] or 0)
    found = {"CUDA of the driver": ".".join(map(str, driver.cuda_version))}
    if _DRIVER.exists():
        found["driver"] = _DRIVER.read_text(encoding="utf-8").splitlines()[0]
    if index < len(driver.cards):
        found["card"] = str(driver.cards[index])
    return found
