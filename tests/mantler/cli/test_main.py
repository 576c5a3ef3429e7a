"""The command as a whole: help, options, errors, start-up time."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from mantler import __version__
from mantler.cli.commands import Group
from mantler.cli.main import cli
from mantler.cli.options import as_arguments
from mantler.cli.settings import is_secret, variable_name
from mantler.config import ALL_SETTINGS, FacadeSettings, RuntimeSettings, Settings
from tests.mantler.cli.conftest import Mantler

HEAVY = ("onnxruntime", "transformers", "tokenizers", "onnx", "gguf", "grpc", "aiohttp", "sqlalchemy", "numpy", "rich")


def commands(group: click.Group = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """All commands with their names."""
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


ALL = dict(commands())


def test_all_commands_are_there() -> None:
    names = (
        "up runtime facade pull models fit keys certs machines mantles deploy undeploy drain tokens chat doctor drill "
        "version models:remove keys:create keys:list keys:revoke certs:init certs:issue certs:list "
        "tokens:create tokens:list tokens:revoke"
    )
    assert set(ALL) == {tuple(name.split(":")) for name in names.split()}


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help_has_examples_that_parse(path: tuple[str, ...], mantler: Mantler) -> None:
    result = mantler(*path, "--help")
    assert result.code == 0
    examples = re.findall(r"^    (?:\S+=\S+ )*(?:export \S+=\$\()?mantler ([^|)<\n]*)", result.out, re.MULTILINE)
    assert examples, "no examples"
    for example in examples:
        name, *rest = example.split()
        assert name in cli.commands
        flags = {option for word in rest for option in [word.split("=")[0]] if option.startswith("--")}
        known = {flag for p, command in ALL.items() if p[0] == name for o in command.params for flag in o.opts}
        assert flags <= known, example


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_flag_is_also_a_variable(path: tuple[str, ...]) -> None:
    for option in ALL[path].params:
        if isinstance(option, click.Option) and option.name != "help":
            assert re.search(r"env: MANTLER_[A-Z_]+\]$", option.help or ""), option.name


def test_every_setting_of_a_process_is_its_flag() -> None:
    classes_of: dict[str, tuple[type[Settings], ...]] = {
        "runtime": (RuntimeSettings,),
        "facade": (FacadeSettings,),
        "up": ALL_SETTINGS,
    }
    for name, classes in classes_of.items():
        flags = {option.name for option in ALL[(name,)].params}
        fields = {field: info for cls in classes for field, info in cls.model_fields.items()}
        for field, info in fields.items():
            assert (field in flags) != is_secret(info), (name, field)


def test_flags_reach_the_children_as_they_were_given() -> None:
    flags: dict[str, object] = {"max_batch": "4", "model": ["a:1", "b:2"], "http": "127.0.0.1:1"}
    assert as_arguments(flags, RuntimeSettings) == ["--max-batch", "4", "--model", "a:1", "--model", "b:2"]
    assert as_arguments(flags, FacadeSettings) == ["--http", "127.0.0.1:1"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("up", "--max-batch", "0"), "error: --max-batch: must be a whole number from 1 to 1024, got '0'\nhint: "),
        (("facade", "--http", "8080"), "error: --http: must be HOST:PORT"),
        (("nonsense",), "error: No such command 'nonsense'\nhint: mantler --help shows what it takes\n"),
        (("up", "--qqqqqqqq"), "error: No such option '--qqqqqqqq'\nhint: mantler up --help shows what it takes\n"),
        (("up", "--max-batch"), "error: Option '--max-batch' requires an argument\nhint: mantler up --help shows"),
        (("pull",), "error: Missing argument 'NAME'\nhint: mantler pull --help"),
        (
            ("pull", "x", "--quantization", "int3"),
            "error: --quantization: must be one of int8, fp32, bf16, int4, got 'int3'\nhint: ",
        ),
        (
            ("keys", "create", "--rpm", "0"),
            "error: --rpm: must be a whole number from 1 to 1000000000, got '0'\nhint: ",
        ),
        (
            ("keys", "create", "--tpm", "1000000001"),
            "error: --tpm: must be a whole number from 1 to 1000000000, got '1000000001'\nhint: ",
        ),
        (("keys", "create", "--rpm", "abc"), "error: --rpm: must be a whole number from 1 to 1000000000, got 'abc'\n"),
        (("keys", "lst"), "error: No such command 'lst'\nhint: did you mean `mantler keys list`?\n"),
        (("models", "list"), "error: No such command 'list'\nhint: did you mean `mantler models`?\n"),
        (("models", "rm", "a:1"), "error: No such command 'rm'\nhint: did you mean `mantler models remove`?\n"),
        (("ps",), "error: No such command 'ps'\nhint: did you mean `mantler models --remote`?\n"),
    ],
)
def test_bad_usage(arguments: tuple[str, ...], error: str, mantler: Mantler) -> None:
    result = mantler(*arguments)
    assert result.code == 2
    assert result.err.startswith(error), result.err
    assert result.out == ""


@pytest.mark.parametrize("path", [(), ("keys",)], ids=["mantler", "mantler keys"])
def test_a_group_alone_prints_its_help(path: tuple[str, ...], mantler: Mantler) -> None:
    result = mantler(*path)
    assert (result.code, result.err) == (0, "")
    assert result.out == mantler(*path, "--help").out
    assert ". " in result.out


def test_words_that_people_try_lead_to_commands() -> None:
    for path, group in [((), cli), *ALL.items()]:
        if isinstance(group, Group):
            for word, meant in group.meant.items():
                assert word not in group.commands
                name = tuple(part for part in meant.split() if not part.startswith("--"))
                assert (*path, *name) in ALL, word


def test_the_variable_of_an_option_is_named_in_its_error(mantler: Mantler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANTLER_KEY_RPM", "many")
    assert mantler("keys", "create").err.startswith("error: MANTLER_KEY_RPM: must be a whole number from 1 to ")


def test_an_environment_variable_is_named_in_its_error(mantler: Mantler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable_name("prefill_chunk"), "7")
    result = mantler("runtime")
    assert result.code == 2
    assert result.err.startswith("error: MANTLER_PREFILL_CHUNK: must be a whole number from 16 to 4096, got '7'\n")


def test_an_unknown_model_is_an_error_with_a_hint(mantler: Mantler) -> None:
    result = mantler("pull", "smollm2:135n")
    assert result.code == 1
    assert result.err.startswith("error: No model is called 'smollm2:135n'\nhint: did you mean smollm2:135m")


def test_versions(mantler: Mantler) -> None:
    assert json.loads(mantler("version", "--json").out)["mantler"] == __version__
    assert re.search(rf"^mantler +{re.escape(__version__)}$", mantler("version").out, re.MULTILINE)
    assert mantler("--version").out == f"mantler {__version__}\n"


def test_help_waits_for_no_heavy_import() -> None:
    code = f"""
import sys
from mantler.cli.main import run
run(["--help"])
print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == "[]\n"


def test_ctrl_c_during_the_imports_is_quiet() -> None:
    code = """
import os, signal, sys
class Interrupter:
    def find_spec(self, name, path=None, target=None):
        if name == "mantler.cli.main":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupter())
from mantler.__main__ import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "version"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_reader_that_leaves_is_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "mantler", "version"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    import pty

    def shown() -> str:
        leader, follower = pty.openpty()
        subprocess.run([sys.executable, "-m", "mantler", "nonsense"], stderr=follower, timeout=60, check=False)
        os.close(follower)
        text = os.read(leader, 4096).decode()
        os.close(leader)
        return text

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in shown()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in shown()
