"""Compiles the native operators beside their Python package; everything else stands in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))

import native_build  # noqa: E402


class BuildNative(build_ext):
    """Makes one shared library that no Python code imports."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")).with_name(native_build.LIBRARY))

    def build_extension(self, ext: Extension) -> None:
        native_build.build(ROOT, Path(self.get_ext_fullpath(ext.name)))


class PlatformWheel(bdist_wheel):
    """The library is not bound to a version of Python, only to a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


headers = sorted(str(path.relative_to(ROOT)) for path in (ROOT / native_build.FOLDER).glob("*.h"))
setup(
    ext_modules=[
        Extension("runtime_server.native.libmantler_ops", sources=native_build.sources(), depends=headers),
    ],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": PlatformWheel},
)
