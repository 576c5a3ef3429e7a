"""A real etcd for tests, which can be stopped, frozen and started again where it was."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.e2e.processes import free_port

START_S = 20.0


def why_not() -> str:
    """Why there can be none; empty where there can."""
    return "" if shutil.which("etcd") else "etcd is not installed here (Debian's package etcd-server)"


class EtcdServer:
    """One member, with its data in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._client, self._peer = free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._client}"

    def start(self) -> None:
        """Returns once it answers."""
        peer = f"http://127.0.0.1:{self._peer}"
        places = ["--listen-client-urls", self.url, "--advertise-client-urls", self.url, "--listen-peer-urls", peer]
        places += ["--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"]
        with (self._folder / "etcd.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["etcd", "--data-dir", str(self._folder / "data"), *places], stdout=log, stderr=log
            )
        deadline_s = time.monotonic() + START_S
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=1) as answer:
                    if b'"true"' in answer.read():
                        return
            except (urllib.error.URLError, OSError):
                pass
            if time.monotonic() > deadline_s or self._process.poll() is not None:
                raise AssertionError((self._folder / "etcd.log").read_text())
            time.sleep(0.05)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """SIGKILL, frozen or not."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)
