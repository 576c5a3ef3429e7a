"""``mantler models`` and the progress of a pull."""

from __future__ import annotations

import asyncio
import io
import json
import sys

import pytest
from rich.console import Console

from mantler.cli.progress import LoadBars
from mantler.cli.terminal import human_bytes
from mantler.messages import LoadProgress, LoadStage
from tests.fake_runtime import FakeRuntime
from tests.mantler.cli.conftest import Mantler, Result


async def mantler_process(*arguments: str) -> Result:
    """Runs the command as a child, beside a server of this process."""
    return await ended(await started(*arguments))


async def started(*arguments: str) -> asyncio.subprocess.Process:
    """The command as a child."""
    return await asyncio.create_subprocess_exec(sys.executable, "-m", "mantler", *arguments, stdout=-1, stderr=-1)


async def ended(process: asyncio.subprocess.Process) -> Result:
    """What it leaves behind, besides what was read already."""
    out, err = await asyncio.wait_for(process.communicate(), 20)
    return Result(process.returncode or 0, out.decode(), err.decode())


def test_an_empty_store(mantler: Mantler) -> None:
    result = mantler("models")
    assert (result.code, result.out) == (0, "")
    assert "`mantler pull smollm2:135m`" in result.err
    assert json.loads(mantler("models", "--json").out) == []


def test_removing_what_is_not_there(mantler: Mantler) -> None:
    result = mantler("models", "remove", "a:1")
    assert result.code == 1
    assert result.err == "error: a:1 is not in the store\nhint: `mantler models` lists what is\n"


async def test_the_models_of_a_runtime() -> None:
    async with FakeRuntime() as runtime:
        as_json = await mantler_process("models", "--remote", "--json", "--runtime", runtime.address)
        as_table = await mantler_process("models", "--remote", "--runtime", runtime.address)
    models = {model["id"]: model["state"] for model in json.loads(as_json.out)}
    assert models == {"cold:1b": "stored", "org/other:tag": "ready", "smollm2:135m": "ready"}
    assert "tokens per request" in as_table.out.splitlines()[0]
    assert as_table.out.splitlines()[1].split() == ["cold:1b", "stored", "8192"]


async def test_a_runtime_that_is_not_there() -> None:
    result = await mantler_process("models", "--remote", "--runtime", "127.0.0.1:1")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("error: 127.0.0.1:1: The machine is offline")
    assert "\nhint: `mantler up`" in result.err


def reports() -> list[LoadProgress]:
    """A short pull."""
    return [
        LoadProgress(LoadStage.DOWNLOADING, 0, 2_000_000),
        LoadProgress(LoadStage.DOWNLOADING, 1_000_000, 2_000_000),
        LoadProgress(LoadStage.CONVERTING, 0, 0),
        LoadProgress(LoadStage.CONVERTING, 5, 5),
    ]


def test_a_bar_in_a_terminal() -> None:
    screen = io.StringIO()
    with LoadBars(Console(file=screen, force_terminal=True, width=100)) as bars:
        bar = bars.add("a:1")
        for report in reports():
            bar.show(report)
    assert "converting a:1" in screen.getvalue()


def test_a_line_per_tenth_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with LoadBars(Console(file=io.StringIO())) as bars:
        bar = bars.add("a:1")
        for report in reports():
            bar.show(report)
    assert capsys.readouterr().err == (
        "downloading a:1 (2.0 MB)\n"
        "downloading a:1: 50 %, 1.0 MB of 2.0 MB\n"
        "converting a:1\n"
        "converting a:1: 100 %, 5 B of 5 B\n"
    )


def test_bytes_for_people() -> None:
    sizes = {0: "0 B", 999: "999 B", 1000: "1.0 kB", 93_000_000: "93.0 MB", 538_000_000: "538 MB", 999_999: "1.0 MB"}
    assert {count: human_bytes(count) for count in sizes} == sizes


def test_several_bars_and_a_line_beside_them() -> None:
    screen = io.StringIO()
    with LoadBars(Console(file=screen, force_terminal=True, width=100)) as bars:
        first, second = bars.add("a:1 on [gpu1]"), bars.add("a:1 on gpu2")
        first.show(reports()[0])
        second.show(reports()[2])
        first.end()
        bars.note("gpu1 serves a:1.")
        second.show(reports()[3])
    assert "downloading a:1 on [gpu1]" in screen.getvalue()
    assert "converting a:1 on gpu2" in screen.getvalue()
    assert "gpu1 serves a:1." in screen.getvalue()
