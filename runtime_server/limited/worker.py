"""The inside of a limited process: answers questions from standard input, having given up what it does not need.

Questions and answers are frames: a length of 8 bytes, big-endian, and as many bytes. A first, empty one says that the
process is ready. It ends with its input, or at its limits.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable
from io import FileIO

from runtime_server.limited.bounds import Bounds

FRAME_HEADER = struct.Struct(">Q")
EXHAUSTED_STATUS = 77
"""Exit status of a process that had no more memory."""

_PR_SET_NO_NEW_PRIVS = 38
"""https://docs.kernel.org/userspace-api/no_new_privs.html"""


def serve(answer: Callable[[bytes], bytes]) -> None:
    """Answers until the input ends. The bounds are the command's argument, as JSON."""
    bounds = Bounds(**json.loads(sys.argv[1]))
    # Ctrl-C reaches every process of a terminal; the runtime decides when this one ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _give_up()
    threading.stack_size(bounds.stack_bytes)
    thread = threading.Thread(target=_answer_all, args=(answer, bounds))
    thread.start()
    thread.join()


def _answer_all(answer: Callable[[bytes], bytes], bounds: Bounds) -> None:
    # A thread counts as a process, so this one had to start first.
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    status = 1
    try:
        with FileIO(0, closefd=False) as questions, FileIO(1, "wb", closefd=False) as answers:
            _write(answers, b"")
            while header := _read(questions, FRAME_HEADER.size):
                (size,) = FRAME_HEADER.unpack(header)
                _limit(resource.RLIMIT_AS, bounds.memory_for(size))
                # Should nobody be left to end a process that hangs, the system does.
                _limit(resource.RLIMIT_CPU, int(time.process_time() + 2 * bounds.timeout_for(size)) + 1)
                _write(answers, answer(_read(questions, size)))
        status = 0
    except MemoryError:
        status = EXHAUSTED_STATUS
    except (BrokenPipeError, EOFError):
        status = 0  # nobody listens any more
    finally:
        # At once: with its memory used up, an interpreter may hang while it tidies.
        os._exit(status)


def _give_up() -> None:
    """Leaves the process its three descriptors, and no way to open or write another file."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    for what, value in ((resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(what, (value, value))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # The last one, for whatever the others need to open.
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))


def _limit(what: int, value: int) -> None:
    """Sets a limit that a later question may raise."""
    resource.setrlimit(what, (value, resource.getrlimit(what)[1]))


def _read(file: FileIO, size: int) -> bytes:
    """``size`` bytes, or none at the end of the input. Raises ``EOFError`` where it ends in between."""
    data = bytearray(size)
    view = memoryview(data)
    done = 0
    while done < size:
        read = file.readinto(view[done:])
        if not read:
            if done:
                raise EOFError
            return b""
        done += read
    return bytes(data)


def _write(file: FileIO, data: bytes) -> None:
    view = memoryview(FRAME_HEADER.pack(len(data)) + data)
    while view:
        view = view[file.write(view) :]
