"""``python -m mantler``: the same as the ``mantler`` command."""

from mantler.cli.main import main

if __name__ == "__main__":
    main()
