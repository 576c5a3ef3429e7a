import platform
from pathlib import Path

import pytest

from runtime_server.backends.processor import integer_products_are_exact


@pytest.mark.parametrize(
    ("flags", "exact"),
    [("fpu avx2 avx512f", False), ("fpu avx2 avx512_vnni", True), ("avx_vnni", True), ("amx_int8", True), ("", False)],
)
def test_x86_needs_vnni(flags: str, exact: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    assert integer_products_are_exact(cpuinfo) is exact


def test_x86_without_a_description_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert not integer_products_are_exact(tmp_path / "missing")


def test_arm_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert integer_products_are_exact(tmp_path / "missing")
