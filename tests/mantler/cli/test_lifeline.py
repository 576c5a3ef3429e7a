"""A child ends with the process that started it, however that one ends."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap

CHILD = textwrap.dedent(
    """
    import signal, sys
    from mantler.cli.lifeline import exit_with_stdin
    {on_term}
    exit_with_stdin({grace_s})
    print("ready", flush=True)
    while True: signal.pause()
    """
)
PARENT = textwrap.dedent(
    """
    import asyncio, sys
    from mantler.cli.child import Child
    async def main():
        child = await Child.spawn("child", (sys.executable, "-c", sys.argv[1]), lambda *_: print(child.pid, flush=True))
        await child.ended
    asyncio.run(main())
    """
)


def gone(pidfd: int) -> bool:
    """Waits for the end of the process behind ``pidfd``; false if it lives on."""
    try:
        return bool(select.select([pidfd], [], [], 20)[0])
    finally:
        os.close(pidfd)


def test_sigkill_of_the_parent_ends_the_child() -> None:
    child = CHILD.format(on_term="", grace_s=30)
    with subprocess.Popen([sys.executable, "-c", PARENT, child], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pidfd = os.pidfd_open(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
        assert gone(pidfd)


def test_the_end_of_stdin_is_a_sigterm() -> None:
    code = CHILD.format(on_term="signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))", grace_s=30)
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline() == b"ready\n"
        child.stdin.write(b"this means nothing")
        child.stdin.close()
        assert child.wait(20) == 7


def test_one_that_ignores_it_ends_after_the_grace() -> None:
    code = CHILD.format(on_term="signal.signal(signal.SIGTERM, signal.SIG_IGN)", grace_s=0.1)
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(20) == 1
