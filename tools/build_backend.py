"""Builds the package with setuptools, and asks for a C++ compiler where the machine has none (PEP 517, PEP 660)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from native_build import has_compiler
from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 - the hooks that stay as they are

_COMPILER = "ziglang>=0.16,<0.18"
"""clang with all that it needs, in one package of about 100 MB."""


def get_requires_for_build_wheel(config_settings: Mapping[str, Any] | None = None) -> list[str]:
    """What must be installed before a wheel is built."""
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_compiler()]


def get_requires_for_build_editable(config_settings: Mapping[str, Any] | None = None) -> list[str]:
    """The same for an editable installation."""
    return [*build_meta.get_requires_for_build_editable(config_settings), *_compiler()]


def _compiler() -> list[str]:
    return [] if has_compiler() else [_COMPILER]
