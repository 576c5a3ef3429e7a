"""Flag, environment and file: what wins, and what a bad value is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from mantler.cli.errors import BadUsage
from mantler.cli.settings import allowed, read, variable_name
from mantler.config import ALL_SETTINGS, FacadeSettings, ModelId, RuntimeSettings, join_address, split_address
from runtime_server.models.errors import PullError
from runtime_server.models.names import ModelName

GOOD_KEY = "mk_live_" + "a" * 43


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, and none of our variables in the environment."""
    for cls in ALL_SETTINGS:
        for name in cls.model_fields:
            monkeypatch.delenv(variable_name(name), raising=False)
    monkeypatch.setenv("MANTLER_HOME", str(tmp_path))
    return tmp_path


def test_flag_wins_over_environment_over_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(RuntimeSettings, {}).max_batch == 32
    (home / "config.toml").write_text("max_batch = 3\nmax_queue = 4\nthreads = 5\nmax_body_mb = 6\n")
    assert read(RuntimeSettings, {}).max_batch == 3
    monkeypatch.setenv("MANTLER_MAX_BATCH", "7")
    monkeypatch.setenv("MANTLER_MAX_QUEUE", "8")
    settings = read(RuntimeSettings, {"max_batch": "9"})
    assert (settings.max_batch, settings.max_queue, settings.threads) == (9, 8, 5)
    assert read(FacadeSettings, {}).max_body_mb == 6


def test_the_file_lies_in_the_home_that_a_flag_names(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.toml").write_text("max_batch = 3\n")
    assert read(RuntimeSettings, {"home": str(other)}).max_batch == 3
    assert read(RuntimeSettings, {}).max_batch == 32


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANTLER_HOME", "~/somewhere")
    assert read(RuntimeSettings, {}).home == Path.home() / "somewhere"


def test_a_home_of_nobody_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    words = r"must be a folder; no home folder is known for the user behind its ~, got '~nobodyx/y'$"
    with pytest.raises(BadUsage, match=f"^--home: {words}"):
        read(RuntimeSettings, {"home": "~nobodyx/y"})
    monkeypatch.setenv("MANTLER_HOME", "~nobodyx/y")
    with pytest.raises(BadUsage, match=f"^MANTLER_HOME: {words}"):
        read(RuntimeSettings, {})


def test_no_model_at_all_can_be_asked_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "config.toml").write_text("model = []\n")
    assert read(RuntimeSettings, {}).model == []
    monkeypatch.setenv("MANTLER_MODEL", ",,")
    assert read(RuntimeSettings, {}).model == []


@pytest.mark.parametrize("bad", ["../../etc", "hf:ORG/REPO", "a.gguf:", "~/a", ".", "a b"])
def test_a_model_is_an_id(bad: str) -> None:
    with pytest.raises(BadUsage, match=r"^--model: must be the id of a model, such as smollm2:135m, got ") as caught:
        read(RuntimeSettings, {"model": ["a:1", bad]})
    assert caught.value.message.endswith(f"got '{bad}'")


@given(st.from_regex(r"[a-zA-Z0-9._:-]{1,6}", fullmatch=True) | st.text(max_size=90))
@example("a" * 80)
@example("a" * 81)
@example("a" * 79 + ".")
@example("K")  # the Kelvin sign is a small k, but not in ASCII
def test_a_model_may_be_spelled_as_the_store_spells_it(text: str) -> None:
    def taken(take: Callable[[str], object]) -> bool:
        try:
            take(text)
        except (PullError, ValueError):
            return False
        return True

    assert taken(TypeAdapter(ModelId).validate_python) == taken(ModelName.parse)


def test_lists_come_from_commas_and_from_repeated_flags(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(RuntimeSettings, {}).model == ["smollm2:135m"]
    monkeypatch.setenv("MANTLER_MODEL", "a:1, b:2,")
    assert read(RuntimeSettings, {}).model == ["a:1", "b:2"]
    assert read(RuntimeSettings, {"model": ["c:3", "d:4"]}).model == ["c:3", "d:4"]
    (home / "config.toml").write_text('cors_origins = ["https://a.example", "https://b.example"]\n')
    assert read(FacadeSettings, {}).cors_origins == ["https://a.example", "https://b.example"]


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANTLER_MAX_BATCH", "")
    assert read(RuntimeSettings, {}).max_batch == 32


def test_a_bad_value_names_its_flag_and_range() -> None:
    with pytest.raises(BadUsage) as caught:
        read(RuntimeSettings, {"max_batch": "5000"})
    assert caught.value.message == "--max-batch: must be a whole number from 1 to 1024, got '5000'"
    assert caught.value.exit_code == 2


def test_a_bad_value_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANTLER_REQUEST_TIMEOUT_S", "0")
    with pytest.raises(BadUsage, match=r"^MANTLER_REQUEST_TIMEOUT_S: must be a number above 0, at most 86400, got '0'"):
        read(FacadeSettings, {})


def test_a_bad_value_names_its_file(home: Path) -> None:
    (home / "config.toml").write_text('log_level = "loud"\n')
    with pytest.raises(BadUsage, match=r"^log_level in .*config.toml: must be one of debug, info, warning, error"):
        read(FacadeSettings, {})


@pytest.mark.parametrize("address", ["8080", "localhost", ":80", "host:", "host:65536", "host:-1", "host:²", "::1:80"])
def test_a_bad_address_is_told_its_shape(address: str) -> None:
    with pytest.raises(BadUsage, match=r"^--http: must be HOST:PORT with a port from 0 to 65535"):
        read(FacadeSettings, {"http": address})


@pytest.mark.parametrize("text", ["max_batch = ", "\xff\x00", "[max_batch"])
def test_a_broken_file_is_named(home: Path, text: str) -> None:
    (home / "config.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(BadUsage, match=r"config\.toml is not a TOML file"):
        read(RuntimeSettings, {})


def test_an_unknown_key_of_the_file_is_refused(home: Path) -> None:
    (home / "config.toml").write_text("max_bach = 3\n")
    with pytest.raises(BadUsage, match=r"^max_bach in .*: there is no such setting"):
        read(RuntimeSettings, {})


def test_a_bad_secret_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANTLER_BOOTSTRAP_KEY", "mk_live_short")
    with pytest.raises(BadUsage) as caught:
        read(FacadeSettings, {})
    assert caught.value.message.startswith("MANTLER_BOOTSTRAP_KEY: must be mk_live_")
    assert "short" not in caught.value.message


def test_a_secret_is_not_printed_with_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANTLER_BOOTSTRAP_KEY", GOOD_KEY)
    settings = read(FacadeSettings, {})
    assert settings.bootstrap_key == GOOD_KEY
    assert GOOD_KEY not in repr(settings)


def test_every_number_has_a_range() -> None:
    for cls in ALL_SETTINGS:
        for name, field in cls.model_fields.items():
            if field.annotation in (int, float):
                assert any(word in allowed(field) for word in ("from", "above")), name


@given(value=st.integers() | st.floats() | st.text(max_size=12))
def test_a_number_is_in_its_range_or_refused_by_name(value: object) -> None:
    try:
        settings = read(RuntimeSettings, {"drain_timeout_s": str(value), "home": "/nonexistent"})
    except BadUsage as error:
        assert error.message.startswith("--drain-timeout-s: must be a number from 0 to 3600")  # noqa: PT017
    else:
        assert 0 <= settings.drain_timeout_s <= 3600


@given(address=st.text(alphabet="ab:[].019 ", max_size=14))
def test_an_address_survives_the_round_trip(address: str) -> None:
    try:
        host, port = split_address(address)
    except ValueError:
        return
    assert host
    assert 0 <= port <= 65535
    assert split_address(join_address(host, port)) == (host, port)
