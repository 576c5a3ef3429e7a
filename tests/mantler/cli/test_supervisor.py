"""The supervisor with real, tiny children. A child says that it serves by making a file."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from mantler.cli.backoff import BackoffPolicy
from mantler.cli.child import MAX_LINE_BYTES, TAIL_LINES, Child, describe_exit
from mantler.cli.supervisor import Limits, Service, StartError, Supervisor

LIMITS = Limits(start_timeout_s=20, stop_timeout_s=20, backoff=BackoffPolicy(1, 2, 4, 60))


class Stage:
    """A folder of files that children make, and a diary of what happened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reports: list[str] = []
        self.lines: list[tuple[str, str]] = []
        self.delays_s: list[float] = []
        self.now_s = 0.0

    def service(self, name: str, code: str) -> Service:
        """A child that runs ``code``, with ``serve()`` and ``log(text)`` at hand."""
        prelude = f"""
            import os, pathlib, signal, sys, time
            folder = pathlib.Path({str(self.folder)!r})
            def log(text):
                with (folder / "log").open("a") as file: file.write(text + "\\n")
            def serve(): (folder / {name!r}).touch()
        """
        program = textwrap.dedent(prelude) + textwrap.dedent(code)

        async def ready() -> bool:
            return (self.folder / name).exists()

        return Service(name, (sys.executable, "-c", program), ready)

    def supervisor(
        self, *services: Service, limits: Limits = LIMITS, sleep: Callable[[float], Awaitable[None]] | None = None
    ) -> Supervisor:
        """A supervisor whose waits between restarts take no time."""

        async def note_delay(delay_s: float) -> None:
            self.delays_s.append(delay_s)

        return Supervisor(
            services,
            report=self.reports.append,
            echo=lambda name, line: self.lines.append((name, line)),
            limits=limits,
            clock=lambda: self.now_s,
            sleep=sleep or note_delay,
        )

    @property
    def log(self) -> list[str]:
        """What the children logged."""
        return (self.folder / "log").read_text().splitlines()


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """An empty stage."""
    return Stage(tmp_path)


POLITE = """
def end(*_):
    log("{name} ends")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
serve()
signal.pause()
"""
STUBBORN = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
serve()
signal.pause()
"""


def is_alive(pid: int) -> bool:
    """Whether a process exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def until(condition: Callable[[], bool]) -> None:
    """Waits for something that another process does."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - nothing but the process itself tells
            await asyncio.sleep(0.01)


async def test_they_are_stopped_in_the_opposite_order(stage: Stage) -> None:
    services = [stage.service(name, POLITE.format(name=name)) for name in ("runtime", "facade")]
    async with stage.supervisor(*services) as supervisor:
        await supervisor.start()
        pids = [supervisor.pid(name) for name in ("runtime", "facade")]
        await supervisor.stop()
        assert stage.log == ["facade ends", "runtime ends"]
        assert not any(is_alive(pid) for pid in pids)
    assert stage.reports == []


async def test_a_child_that_exits_early_fails_the_start_with_its_last_words(stage: Stage) -> None:
    bad = stage.service("runtime", "print('no model', file=sys.stderr); sys.exit(3)")
    good = stage.service("facade", POLITE.format(name="facade"))
    async with stage.supervisor(bad, good) as supervisor:
        with pytest.raises(StartError, match=r"^the runtime exited with code 3$") as caught:
            await supervisor.start()
        assert caught.value.tail == ("no model",)
        pid = supervisor.pid("facade")
        await supervisor.stop()
        assert not is_alive(pid)


async def test_a_program_that_does_not_exist_fails_the_start(stage: Stage) -> None:
    async def ready() -> bool:
        return True

    async with stage.supervisor(Service("runtime", ("/nonexistent",), ready)) as supervisor:
        with pytest.raises(StartError, match="could not be started: No such file"):
            await supervisor.start()


async def test_a_child_that_never_serves_fails_the_start_and_is_gone(stage: Stage) -> None:
    limits = Limits(start_timeout_s=0.2, stop_timeout_s=20)
    async with stage.supervisor(stage.service("runtime", "signal.pause()"), limits=limits) as supervisor:
        with pytest.raises(StartError, match=r"did not serve within 0.2 s"):
            await supervisor.start()
        assert not is_alive(supervisor.pid("runtime"))


async def test_one_that_dies_is_restarted_with_growing_delays(stage: Stage) -> None:
    async with stage.supervisor(stage.service("runtime", "serve(); signal.pause()")) as supervisor:
        await supervisor.start()
        keeping = asyncio.create_task(supervisor.keep())
        for count, died_at_s in enumerate((1.0, 2.0, 3.0, 100.0, 101.0), start=1):
            old = supervisor.pid("runtime")
            stage.now_s = died_at_s
            os.kill(old, signal.SIGKILL)
            await until(lambda count=count: len(stage.reports) == 2 * count)  # type: ignore[misc]
            assert supervisor.pid("runtime") != old
        keeping.cancel()
        await asyncio.wait({keeping})
        await supervisor.stop()
    assert stage.delays_s == [1, 2, 4, 1, 2], "97 s of service count as healthy"
    assert stage.reports[0] == "the runtime was killed by SIGKILL; it will be started again in 1 s"
    assert stage.reports[1] == "the runtime serves again"


async def test_a_restart_that_fails_is_tried_again(stage: Stage) -> None:
    once = """
        log("start")
        count = len((folder / "log").read_text().splitlines())
        if 2 <= count <= 3: sys.exit(4)
        serve()
        signal.pause()
    """
    async with stage.supervisor(stage.service("runtime", once)) as supervisor:
        await supervisor.start()
        (stage.folder / "runtime").unlink()
        keeping = asyncio.create_task(supervisor.keep())
        os.kill(supervisor.pid("runtime"), signal.SIGKILL)
        await until(lambda: stage.reports[-1:] == ["the runtime serves again"])
        keeping.cancel()
        await asyncio.wait({keeping})
        await supervisor.stop()
    assert stage.delays_s == [1, 2, 4]
    assert stage.reports[1] == "the runtime exited with code 4; it will be started again in 2 s"


async def test_stopping_during_a_delay_starts_nothing(stage: Stage) -> None:
    waiting = asyncio.Event()

    async def sleep(_: float) -> None:
        waiting.set()
        await asyncio.Event().wait()

    async with stage.supervisor(stage.service("runtime", "serve(); signal.pause()"), sleep=sleep) as supervisor:
        await supervisor.start()
        pid = supervisor.pid("runtime")
        keeping = asyncio.create_task(supervisor.keep())
        os.kill(pid, signal.SIGKILL)
        await waiting.wait()
        keeping.cancel()
        await asyncio.wait({keeping})
        await supervisor.stop()
        assert supervisor.pid("runtime") == pid


async def test_one_that_does_not_stop_is_killed(stage: Stage) -> None:
    limits = Limits(start_timeout_s=20, stop_timeout_s=0.1)
    async with stage.supervisor(stage.service("runtime", STUBBORN), limits=limits) as supervisor:
        await supervisor.start()
        pid = supervisor.pid("runtime")
        await supervisor.stop()
        assert not is_alive(pid)
    assert stage.reports == ["the runtime did not stop in time and was killed"]


async def test_leaving_the_context_leaves_no_process(stage: Stage) -> None:
    grandparent = f"""
        import subprocess
        child = subprocess.Popen([{sys.executable!r}, "-c", "import signal; signal.pause()"])
        log(str(child.pid))
        {STUBBORN.strip().replace(chr(10), chr(10) + "        ")}
    """
    async with stage.supervisor(stage.service("runtime", grandparent)) as supervisor:
        await supervisor.start()
        pid = supervisor.pid("runtime")
        assert is_alive(pid)
    assert not is_alive(pid)
    grandchild = int(stage.log[0])
    await until(lambda: not is_alive(grandchild) or _is_zombie(grandchild))


def _is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


async def test_output_is_echoed_and_its_tail_is_bounded(stage: Stage) -> None:
    noisy = f"""
        for number in range(100): print(number)
        sys.stdout.write("x" * {3 * MAX_LINE_BYTES} + "\\nno newline at the end")
    """
    code = stage.service("child", noisy).command
    child = await Child.spawn("child", code, lambda name, line: stage.lines.append((name, line)))
    assert await child.ended == 0
    assert stage.lines[:2] == [("child", "0"), ("child", "1")]
    assert len(child.tail) == TAIL_LINES
    assert child.tail[-1] == "no newline at the end"
    assert max(len(line) for line in child.tail) <= MAX_LINE_BYTES


async def test_a_child_that_printed_bytes_which_are_no_text_is_echoed(stage: Stage) -> None:
    child = await Child.spawn(
        "child", (sys.executable, "-c", r"import os; os.write(2, b'\xff\n')"), lambda *line: stage.lines.append(line)
    )
    await child.ended
    assert stage.lines == [("child", "\ufffd")]


@pytest.mark.parametrize(
    ("returncode", "words"),
    [(0, "exited with code 0"), (3, "exited with code 3"), (-9, "was killed by SIGKILL"), (-63, "signal 63")],
)
def test_an_exit_in_words(returncode: int, words: str) -> None:
    assert words in describe_exit(returncode)
