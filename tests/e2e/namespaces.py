"""Hosts on one machine: network namespaces with a cable each, which can be cut without a word."""

from __future__ import annotations

import os
import shutil
import subprocess
from types import TracebackType
from typing import Self

# A token bucket that no packet fits into. It drops without telling anybody, as a switch does that has lost its power.
_SILENCE = ("tbf", "rate", "8bit", "burst", "1", "latency", "1ms")


def why_not() -> str:
    """Why there can be no namespaces here; empty where there can."""
    if os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("tc")):
        return "network namespaces need root, ip and tc"
    name = f"mantler-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode == 0:
        _run("ip", "netns", "del", name)
    return made.stderr.strip()


class Host:
    """A namespace whose cable ends here. Use as a context manager.

    Attributes:
        address: its own.
        gateway: this side's, as it sees it.
        within: runs a command there.
    """

    def __init__(self, number: int) -> None:
        self._name = f"mantler-{os.getpid()}-{number}"
        self._cable = f"mt{os.getpid() % 10**8}{number}"
        network = f"10.{100 + os.getpid() % 100}.{os.getpid() // 100 % 250}"
        self.gateway = f"{network}.{4 * number + 1}"
        self.address = f"{network}.{4 * number + 2}"
        self.within = ("ip", "netns", "exec", self._name)

    def __enter__(self) -> Self:
        _run("ip", "netns", "add", self._name)
        try:
            _run("ip", "link", "add", self._cable, "type", "veth", "peer", "name", "eth0", "netns", self._name)
            _run("ip", "addr", "add", f"{self.gateway}/30", "dev", self._cable)
            _run("ip", "link", "set", self._cable, "up")
            _run(*self.within, "ip", "addr", "add", f"{self.address}/30", "dev", "eth0")
            for device in ("lo", "eth0"):
                _run(*self.within, "ip", "link", "set", device, "up")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Its end of the cable goes with it, and so does ours.
        _run("ip", "netns", "del", self._name)

    def cut(self) -> None:
        """From now on every packet is lost, in both directions."""
        _run("tc", "qdisc", "add", "dev", self._cable, "root", *_SILENCE)
        _run(*self.within, "tc", "qdisc", "add", "dev", "eth0", "root", *_SILENCE)

    def mend(self) -> None:
        """Packets come through again."""
        _run("tc", "qdisc", "del", "dev", self._cable, "root")
        _run(*self.within, "tc", "qdisc", "del", "dev", "eth0", "root")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
