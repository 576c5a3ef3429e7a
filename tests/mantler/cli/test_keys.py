"""``mantler keys`` on a real database."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mantler.cli.expiry import parse_expiry
from tests.mantler.cli.conftest import Mantler

NOW_S = 1_800_000_000


def test_the_key_alone_is_on_stdout(mantler: Mantler) -> None:
    result = mantler("keys", "create", "--name", "ci")
    assert result.code == 0
    assert result.out.startswith("mk_live_")
    assert result.out.count("\n") == 1
    assert "shown this once" in result.err
    assert "mk_live_" not in result.err


def test_a_life_of_a_key(mantler: Mantler) -> None:
    made = json.loads(
        mantler(
            "keys", "create", "--name", "ci", "--models", "a:1,b:2", "--models", "c:3", "--rpm", "60",
            "--tpm", "100000", "--expires", "30d", "--json",
        ).out
    )  # fmt: skip
    assert made["allowed_models"] == ["a:1", "b:2", "c:3"]
    assert (made["requests_per_minute"], made["tokens_per_minute"]) == (60, 100_000)
    assert abs(made["expires_unix_s"] - time.time() - 30 * 86_400) < 60

    listed = json.loads(mantler("keys", "list", "--json").out)
    assert [(key["id"], key["tokens_per_minute"]) for key in listed] == [(made["id"], 100_000)]
    assert "key" not in listed[0]
    assert made["key"] not in json.dumps(listed)
    shown = mantler("keys", "list").out
    assert " active " in shown
    assert re.search(r"rpm +tpm .*\n.* 60 +100000 ", shown)

    assert mantler("keys", "revoke", made["id"]).code == 0
    assert " revoked " in mantler("keys", "list").out


def test_revoking_twice_says_so(mantler: Mantler) -> None:
    made = json.loads(mantler("keys", "create", "--json").out)
    assert mantler("keys", "revoke", made["id"]).err == f"{made['id']} is revoked.\n"
    again = mantler("keys", "revoke", made["id"])
    assert again.code == 0
    assert again.err.startswith(f"{made['id']} was revoked already, 2")


def test_a_model_that_nobody_knows_is_a_warning(mantler: Mantler) -> None:
    result = mantler("keys", "create", "--models", "nope,smollm2:135m")
    assert (result.code, result.out.count("\n")) == (0, 1)
    assert "warning: no model is stored or known as 'nope'; " in result.err
    assert result.err.count("warning") == 1


def test_an_empty_list(mantler: Mantler) -> None:
    result = mantler("keys", "list")
    assert (result.code, result.out) == (0, "")
    assert "`mantler keys create`" in result.err
    assert json.loads(mantler("keys", "list", "--json").out) == []


def test_revoking_what_is_not_there(mantler: Mantler) -> None:
    made = json.loads(mantler("keys", "create", "--json").out)
    result = mantler("keys", "revoke", "key_none", made["id"])
    assert result.code == 1
    assert (
        result.err
        == f"{made['id']} is revoked.\nerror: there is no key key_none\nhint: `mantler keys list` shows the ids\n"
    )


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (("--expires", "soon"), 2, "error: --expires: must be a time from now such as"),
        (("--expires", "2001-01-01"), 2, "error: --expires: must be"),
        (("--models", ","), 2, "error: --models: names no model\nhint: leave it out"),
        (("--name", ""), 1, "error: name: must be 1 to"),
    ],
)
def test_bad_values(arguments: tuple[str, ...], code: int, error: str, mantler: Mantler) -> None:
    result = mantler("keys", "create", *arguments)
    assert result.code == code
    assert result.err.startswith(error), result.err
    assert result.out == ""


def test_a_broken_database_is_an_error_without_a_traceback(mantler: Mantler, home: Path) -> None:
    home.mkdir()
    (home / "mantler.db").write_bytes(b"this is no database" * 100)
    result = mantler("keys", "list")
    assert result.code == 1
    assert "error: The database of API keys cannot be reached" in result.err
    assert "not a database" in result.err, "the cause is told"
    assert "Traceback" not in result.err


def test_a_home_from_a_flag(mantler: Mantler, tmp_path: Path) -> None:
    assert mantler("keys", "create", "--home", str(tmp_path / "other")).code == 0
    assert (tmp_path / "other" / "mantler.db").exists()
    assert mantler("keys", "list").out == ""


@pytest.mark.parametrize(
    ("text", "seconds"), [("90m", 5400), ("12h", 43_200), ("30d", 2_592_000), ("8w", 4_838_400), ("1m", 60)]
)
def test_times_from_now(text: str, seconds: int) -> None:
    assert parse_expiry(text, NOW_S) == NOW_S + seconds


def test_a_date_lasts_until_its_end() -> None:
    assert parse_expiry("2027-01-15", NOW_S) == 1_800_057_600  # NOW_S is on that day


@given(st.text(max_size=12) | st.from_regex(r"[0-9]{1,9}[mhdwy]", fullmatch=True) | st.dates().map(str))
def test_an_expiry_is_in_the_future_or_refused(text: str) -> None:
    try:
        end = parse_expiry(text, NOW_S)
    except ValueError as error:
        assert "must be" in str(error) or "month" in str(error)  # noqa: PT017
    else:
        assert NOW_S < end < 253_402_300_800
