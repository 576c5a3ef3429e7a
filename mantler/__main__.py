"""Where the ``mantler`` command and ``python -m mantler`` enter: Ctrl-C is quiet from here on, imports included."""

from __future__ import annotations

import os
import signal

EXIT_INTERRUPTED = 130


def main() -> None:
    """Runs the command and exits."""
    # Nothing has begun that would have to end well, and a traceback through half an import tells nobody anything.
    before = signal.signal(signal.SIGINT, lambda *_: os._exit(EXIT_INTERRUPTED))
    from mantler.cli.main import main as run

    signal.signal(signal.SIGINT, before)
    run()


if __name__ == "__main__":
    main()
