"""The documentation says what the code does: generated parts are current, and what is named exists."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import click
import pytest
from google.protobuf import descriptor_pool

from facade.options import MESSAGE_NO_OPS, NO_OPS
from facade.schema import ChatBody
from mantler.cli.main import cli
from mantler.cli.settings import variable_name
from mantler.config import ALL_SETTINGS
from mantler.v1 import admin_pb2, generation_pb2, model_pb2

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SERVICES = (generation_pb2.DESCRIPTOR, model_pb2.DESCRIPTOR, admin_pb2.DESCRIPTOR)
"""Importing them is what puts them into the descriptor pool."""

SHELL_VARIABLES = {"MANTLER_KEY"}
"""Variables of the examples that mean nothing to us."""
NATIVE_VARIABLES = {"MANTLER_INSTRUCTION_SET", "MANTLER_NATIVE_STRICT"}
"""Read where the operators are loaded and where they are compiled."""
MADE_AT_RUN_TIME = {"mantler.db"}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def without_fences(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def code(text: str) -> str:
    """What stands in fences and between backticks, a piece per line; continued lines are joined."""
    fences = re.findall(r"^```\w*\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return "\n".join([*fences, *re.findall(r"`([^`\n]+)`", without_fences(text))]).replace("\\\n", " ")


def anchors(page: Path) -> set[str]:
    """The fragments that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", without_fences(page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def options(command: click.Command) -> set[str]:
    """Flags of a command and of what stands below it."""
    own = {flag for parameter in command.params for flag in parameter.opts} | {"--help", "--version"}
    below = command.commands.values() if isinstance(command, click.Group) else ()
    return own.union(*(options(child) for child in below))


def variables(command: click.Command) -> Iterator[str]:
    """Variables of a command's options that are no settings."""
    for parameter in command.params:
        if isinstance(parameter.envvar, str):
            yield parameter.envvar
    if isinstance(command, click.Group):
        for child in command.commands.values():
            yield from variables(child)


def exists(name: str) -> bool:
    """Whether a dotted name is a module, something in a module, or a symbol of the protos."""
    if name.startswith("mantler.v1."):
        try:
            descriptor_pool.Default().FindFileContainingSymbol(name)
        except KeyError:
            return False
        return True
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        parent, _, attribute = name.rpartition(".")
        return bool(parent) and hasattr(importlib.import_module(parent), attribute)
    return True


def test_generated_parts_are_current() -> None:
    command = [sys.executable, "-m", "tools.gen_docs", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", without_fences(page.read_text(encoding="utf-8")))
    broken = []
    for target in targets:
        if re.match(r"https?:", target):
            continue
        path, _, fragment = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (fragment and fragment not in anchors(file)):
            broken.append(target)
    assert broken == []


@each_page
def test_paths_and_modules_exist(page: Path) -> None:
    pieces = code(page.read_text(encoding="utf-8")).split()
    paths = [
        piece
        for piece in pieces
        if re.fullmatch(r"(mantler|facade|runtime_server|proto|tests|tools|bench|docs)/[\w./-]+", piece)
    ]
    modules = [piece for piece in pieces if re.fullmatch(r"(mantler|facade|runtime_server)(\.\w+)+", piece)]
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert [name for name in modules if name not in MADE_AT_RUN_TIME and not exists(name)] == []


@each_page
def test_variables_are_read_by_somebody(page: Path) -> None:
    known = {variable_name(name) for cls in ALL_SETTINGS for name in cls.model_fields}
    known |= {*variables(cli), *SHELL_VARIABLES, *NATIVE_VARIABLES}
    named = set(re.findall(r"\bMANTLER_[A-Z_]+\b", page.read_text(encoding="utf-8")))
    assert named - known == set()


@each_page
def test_commands_and_flags_exist(page: Path) -> None:
    unknown = []
    for name, rest in re.findall(r"\bmantler ([a-z]+)([^\n|]*)", code(page.read_text(encoding="utf-8"))):
        command = cli.commands.get(name)
        flags = re.findall(r"(?<!\S)--[a-z-]+", rest)
        unknown += [name] if command is None else [flag for flag in flags if flag not in options(command)]
    assert unknown == []


@each_page
def test_make_targets_exist(page: Path) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    named = re.findall(r"^make ([a-z]+)", code(page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    assert set(named) - set(targets) == set()


def test_every_parameter_of_the_chat_route_is_documented_once() -> None:
    text = (ROOT / "docs" / "rest.md").read_text(encoding="utf-8")
    section = text.partition("## Parameters")[2].partition("\n## ")[0]
    named = [
        name for row in re.findall(r"^\| (`.+?) \|", section, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    ]
    assert sorted(named) == sorted(set(ChatBody.model_fields) - set(NO_OPS))
    assert all(f"`messages[].{name}`" in text for name in MESSAGE_NO_OPS)


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"\((\d{4}-[\w-]+\.md)\)", (folder / "README.md").read_text(encoding="utf-8"))
    assert listed == sorted(file.name for file in folder.glob("[0-9]*.md"))


def test_pictures_are_well_formed() -> None:
    pictures = list((ROOT / "docs" / "images").glob("*.svg"))
    assert pictures
    for picture in pictures:
        ElementTree.parse(picture)
