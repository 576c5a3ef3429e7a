"""``mantler certs``, and what the other commands make of certificates."""

from __future__ import annotations

import json
import tomllib
from datetime import timedelta
from pathlib import Path

import pytest

from mantler.cli import ports
from mantler.cli.checks import Status
from mantler.cli.tls_checks import tls, unanswered
from mantler.config import FacadeSettings
from mantler.security.files import TlsFiles
from tests.authority import LONG_AGO, Authority
from tests.mantler.cli.conftest import Mantler


def test_from_nothing_to_a_certificate(mantler: Mantler, home: Path) -> None:
    assert mantler("certs", "issue", "a", "--host", "a.lan").err.startswith("error: there is no authority in")
    made = mantler("certs", "init")
    assert (made.code, made.out) == (0, "")
    assert f"{home}/certs/ca.key, stays on this machine" in made.err
    issued = mantler("certs", "issue", "gpu-1", "--host", "gpu-1.lan", "--host", "192.168.1.20")
    assert issued.code == 0
    assert f"{home}/certs/gpu-1.pem {home}/certs/gpu-1.key {home}/certs/ca.pem" in issued.err
    assert tomllib.loads(issued.out) == {
        "tls_cert": "certs/gpu-1.pem",
        "tls_key": "certs/gpu-1.key",
        "tls_ca": "certs/ca.pem",
    }
    listed = mantler("certs", "list").out
    assert "ca     authority" in listed
    assert "gpu-1  servers and clients" in listed
    assert "gpu-1.lan, localhost, 192.168.1.20, 127.0.0.1, ::1" in listed


def test_scripts_get_json(mantler: Mantler, home: Path) -> None:
    assert json.loads(mantler("certs", "list", "--json").out) == []
    authority = json.loads(mantler("certs", "init", "--json").out)
    assert (authority["is_authority"], authority["key"]) == (True, f"{home}/certs/ca.key")
    issued = json.loads(mantler("certs", "issue", "a", "--host", "a.lan, b.lan", "--json").out)
    assert (issued["authority"], issued["days_left"]) == (authority["certificate"], 364)
    assert issued["hosts"][:2] == ["a.lan", "b.lan"]
    assert [row["name"] for row in json.loads(mantler("certs", "list", "--json").out)] == ["ca", "a"]


def test_nothing_is_overwritten(mantler: Mantler, home: Path) -> None:
    mantler("certs", "init")
    before = (home / "certs" / "ca.key").read_bytes()
    refused = mantler("certs", "init")
    assert refused.code == 1
    assert refused.err == f"error: {home}/certs/ca.pem exists\nhint: --force replaces it\n"
    assert (home / "certs" / "ca.key").read_bytes() == before
    assert "worth nothing" in mantler("certs", "init", "--force").err
    assert (home / "certs" / "ca.key").read_bytes() != before


def test_bad_input_is_named(mantler: Mantler, home: Path) -> None:
    mantler("certs", "init")
    assert mantler("certs", "issue", "a").code == 2
    assert mantler("certs", "issue", "a", "--host", "a:1").err.startswith("error: --host: must be a DNS name")
    assert mantler("certs", "issue", "ca", "--host", "a").err.startswith("error: NAME: must be")
    (home / "certs").rename(home / "moved")
    (home / "certs").touch()
    assert mantler("certs", "list").err.startswith(f"error: {home}/certs is no folder")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("runtime", "--runtime", "0.0.0.0:0"), "error: 0.0.0.0:"),
        (("up", "--runtime", "0.0.0.0:0"), "error: 0.0.0.0:0 can be reached from other machines"),
        (("up", "--machines", "192.0.2.1:1"), "error: 192.0.2.1:1 is beyond this machine"),
        (("facade", "--http", "127.0.0.1:0", "--runtime", "192.0.2.1:1"), "error: 192.0.2.1:1 is beyond this machine"),
        (("chat", "--runtime", "192.0.2.1:1", "hello there"), "error: 192.0.2.1:1 is beyond this machine"),
        (("models", "--remote", "--runtime", "192.0.2.1:1"), "error: 192.0.2.1:1 is beyond this machine"),
        (("doctor", "--profile", "--runtime", "192.0.2.1:1"), "error: 192.0.2.1:1 is beyond this machine"),
        (("up", "--tls-cert", "/nowhere/a.pem"), "error: tls_key: must be given beside tls_cert"),
        (("chat", "--tls-ca", "/nowhere/ca.pem", "hello there"), "error: tls_ca: /nowhere/ca.pem cannot be read"),
    ],
)
def test_no_command_goes_beyond_the_machine_without_tls(
    arguments: tuple[str, ...], error: str, mantler: Mantler
) -> None:
    result = mantler(*arguments)
    assert result.code == 1
    assert error in result.err
    assert "hint: " in result.err


def test_the_setting_insecure_is_true_or_false(mantler: Mantler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANTLER_INSECURE", "perhaps")
    result = mantler("models", "--remote")
    assert result.code == 2
    assert result.err.startswith("error: MANTLER_INSECURE: must be true or false, got 'perhaps'")


def test_doctor_looks_at_the_files(mantler: Mantler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP", "RUNTIME"):
        monkeypatch.setenv(f"MANTLER_{name}", ports.claim("127.0.0.1:0", f"--{name.lower()}"))
    issued = Authority(tmp_path / "certs").issue("a")
    monkeypatch.setenv("MANTLER_TLS_CERT", str(issued.certificate))
    result = mantler("doctor", "--json")
    assert result.code == 1
    assert "tls_key: must be given beside tls_cert" in result.out
    monkeypatch.setenv("MANTLER_TLS_KEY", str(issued.key))
    result = mantler("doctor", "--json")
    assert "tls_ca: a client needs it" in result.out
    monkeypatch.setenv("MANTLER_TLS_CA", str(tmp_path / "certs" / "ca.pem"))
    result = mantler("doctor", "--json")
    assert result.code == 0, result.out
    found = [(row["check"], row["status"]) for row in json.loads(result.out) if row["check"] in ("tls", "runtime")]
    assert found == [("tls", "ok"), ("tls", "ok"), ("runtime", "ok")]


def test_certificates_that_end_soon_are_told(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    issued = authority.issue("a")
    files = TlsFiles(issued.certificate, issued.key, authority.certificate)
    assert [finding.status for finding in tls("tls", files)] == [Status.OK, Status.OK]
    first, _ = tls("tls", files, issued.ends - timedelta(days=29, hours=1))
    assert first.status is Status.WARN
    assert first.detail.endswith(", 29 more days")
    authority.issue("a", now=LONG_AGO)
    (finding,) = tls("tls", files)
    assert finding.status is Status.FAIL


def test_keys_that_others_read_and_foreign_certificates_are_told(tmp_path: Path) -> None:
    issued = Authority(tmp_path / "one").issue("a")
    assert issued.key is not None
    issued.key.chmod(0o640)
    other = Authority(tmp_path / "two")
    found = list(tls("tls", TlsFiles(issued.certificate, issued.key, other.certificate)))
    assert [finding.status for finding in found] == [Status.OK, Status.OK, Status.WARN, Status.WARN]
    assert found[2].hint == f"chmod 600 {issued.key}"
    assert "does not come from the authority" in found[3].detail


def test_an_unanswered_question_has_a_hint() -> None:
    assert "must name the host" in str(unanswered("a:1", "Socket closed", encrypts=True).hint)
    assert "name its authority" in str(unanswered("a:1", "Socket closed", encrypts=False).hint)


def test_settings_name_files_from_the_root_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANTLER_TLS_CERT", "~/a.pem")
    assert FacadeSettings(home=tmp_path).tls_cert == Path.home() / "a.pem"
    monkeypatch.delenv("MANTLER_TLS_CERT")
    (tmp_path / "config.toml").write_text('tls_cert = "certs/a.pem"\ntls_ca = "/etc/ca.pem"\n')
    settings = FacadeSettings(home=tmp_path, tls_key=Path("a.key"))
    assert (settings.tls_cert, settings.tls_ca) == (tmp_path / "certs/a.pem", Path("/etc/ca.pem"))
    assert settings.tls_key == Path.cwd() / "a.key", "a flag's path begins where the user is"
