"""The ``mantler`` command. :mod:`mantler.cli.main` is where it enters.

stdout carries data, stderr logs and progress. A command's module imports click and the settings only, and the
rest inside its function, so that ``mantler --help`` does not wait for libraries that it does not need.
"""
