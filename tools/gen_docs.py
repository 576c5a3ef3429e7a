"""Writes those parts of the documentation that the code knows best: help texts, settings, errors, refused options.

Run it as ``make docs``. A part stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``; what is outside
belongs to people. With ``--check`` it writes nothing and says which files are behind, which is what a test asks.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args, get_origin

import click
from google.protobuf.descriptor import ServiceDescriptor
from pydantic.fields import FieldInfo

from facade.options import MESSAGE_NO_OPS, NO_OPS, NoOp
from mantler.cli.main import cli
from mantler.cli.settings import bounds, flag_name, is_secret, variable_name
from mantler.config import Address, FacadeSettings, File, GrpcSettings, RuntimeSettings, Settings, UpSettings
from mantler.errors import TABLE, ErrorCode
from mantler.v1 import generation_pb2, model_pb2
from runtime_server.models.catalogue import CATALOGUE, WheelFile

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md")))
HELP_COLUMNS = 96

_REGION = re.compile(r"(<!-- generated: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

_CASES = {
    ErrorCode.INVALID_REQUEST: "The body is not JSON, or the request makes no sense as a whole.",
    ErrorCode.INVALID_PARAMETER: "A parameter has the wrong type or is out of range.",
    ErrorCode.UNSUPPORTED_PARAMETER: "A known option that cannot be honoured yet.",
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: "The prompt leaves no room for a single token.",
    ErrorCode.INVALID_API_KEY: "No key, an unknown one, a revoked one or an expired one.",
    ErrorCode.MODEL_NOT_ALLOWED: "The key may not use this model, or none of the machines that serve it.",
    ErrorCode.INVALID_TOKEN: "No token of a machine or an operator, an unknown one or a revoked one.",
    ErrorCode.MODEL_NOT_FOUND: "The model is unknown or not deployed.",
    ErrorCode.MACHINE_NOT_FOUND: "No machine of the mesh has this name.",
    ErrorCode.MACHINE_EXISTS: "Another machine of the mesh has this name.",
    ErrorCode.ROUTE_NOT_FOUND: "There is nothing at this address.",
    ErrorCode.METHOD_NOT_ALLOWED: "The address does not take this method.",
    ErrorCode.REQUEST_TOO_LARGE: "The body is longer than `max_body_mb`.",
    ErrorCode.UNSUPPORTED_MEDIA_TYPE: "The body says that it is not JSON, or has an unknown encoding.",
    ErrorCode.RATE_LIMIT_EXCEEDED: "The key's requests or tokens per minute are used up.",
    ErrorCode.QUEUE_FULL: "Every slot of the model is taken and its queue is full.",
    ErrorCode.CANCELLED: "The caller went away. Seen in logs only.",
    ErrorCode.MACHINE_OFFLINE: "The runtime cannot be reached.",
    ErrorCode.RUNTIME_UNAVAILABLE: "The runtime or the facade takes no requests now: loading, draining, at its bound.",
    ErrorCode.STORE_UNAVAILABLE: "The database of keys fails.",
    ErrorCode.DEADLINE_EXCEEDED: "The request passed its deadline.",
    ErrorCode.INTERNAL_ERROR: "A bug of ours. The log has the details, the client does not.",
}

_NOTHING: tuple[object, ...] = (
    False, True, 1, 1.0, "none", "auto", "default", "medium", "in_memory", [], ["text"], {},
)  # fmt: skip
"""Values that ask for nothing, somewhere in the API."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is behind")
    check = parser.parse_args().check
    behind = [page for page in PAGES if update(ROOT / page, write=not check)]
    for page in behind:
        print(f"{page} {'is behind the code' if check else 'is written'}")
    if check and behind:
        sys.exit("Run `make docs`.")


def update(page: Path, *, write: bool) -> bool:
    """Brings the generated parts of ``page`` up to date. Returns whether they were not."""
    before = page.read_text(encoding="utf-8")
    after = fill(before)
    if write and after != before:
        page.write_text(after, encoding="utf-8")
    return after != before


def fill(text: str) -> str:
    """``text`` with each generated part made anew. Raises ``KeyError`` for a part that nobody makes."""
    return _REGION.sub(lambda match: f"{match[1]}{REGIONS[match['name']]()}\n{match[3]}", text)


def commands() -> Iterator[tuple[str, click.Command, click.Context]]:
    """Every command with its full name, the groups before what they hold."""

    def walk(command: click.Command, context: click.Context) -> Iterator[tuple[str, click.Command, click.Context]]:
        yield context.command_path, command, context
        if isinstance(command, click.Group):
            for name, child in command.commands.items():
                yield from walk(child, _context(child, name, context))

    return walk(cli, _context(cli, "mantler", None))


def _context(command: click.Command, name: str, parent: click.Context | None) -> click.Context:
    settings = {**cli.context_settings, "terminal_width": HELP_COLUMNS, "max_content_width": HELP_COLUMNS}
    return click.Context(command, info_name=name, parent=parent, **settings)


def command_table(page: str = "", *, nested: bool = True) -> str:
    """The commands, a line each, with links into ``page``. ``nested`` includes what stands below a group."""
    rows = [
        [f"[`{path}`]({page}#{path.replace(' ', '-')})", command.get_short_help_str(limit=200)]
        for path, command, _ in commands()
        if path.count(" ") == 1 or (nested and path.count(" ") == 2)
    ]
    return table(("command", "what it does"), rows)


def help_texts() -> str:
    """The help text of every command."""
    return "\n\n".join(
        f"## {path}\n\n```text\n{command.get_help(context).rstrip()}\n```" for path, command, context in commands()
    )


def settings_tables() -> str:
    """Every setting, by the process that reads it."""
    grpc = {name: field for name, field in GrpcSettings.model_fields.items() if name not in Settings.model_fields}
    shared = {*Settings.model_fields, *grpc}
    parts = [("Every process", Settings, Settings.model_fields), ("All that speak gRPC", GrpcSettings, grpc)]
    for title, cls in (("Runtime", RuntimeSettings), ("Facade", FacadeSettings), ("`mantler up`, besides", UpSettings)):
        parts.append((title, cls, {name: f for name, f in cls.model_fields.items() if name not in shared}))
    head = ("key in the file", "flag", "variable", "default", "values", "meaning")
    return "\n\n".join(
        f"### {title}\n\n{table(head, [_setting(name, field) for name, field in fields.items()])}"
        for title, _, fields in parts
    )


def _setting(name: str, field: FieldInfo) -> list[str]:
    key = "–" if name == "home" else f"`{name}`"
    flag = "–" if is_secret(field) else f"`{flag_name(name)}`"
    return [key, flag, f"`{variable_name(name)}`", _default(name, field), _values(field), str(field.description)]


def _default(name: str, field: FieldInfo) -> str:
    if name == "home":
        return "`~/.mantler`"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "`true`" if value else "`false`"
    shown = ", ".join(value) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else value
    return f"`{shown}`"


def _values(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(field.annotation))
    if get_args(Address)[1] in field.metadata:
        return "`HOST:PORT`"
    if get_origin(field.annotation) is list:
        return "a list"
    if field.annotation is bool:
        return "`true`, `false`"
    if field.annotation == File | None:
        return "a file"
    return ", ".join(bounds(field)) or ("a key" if is_secret(field) else "a folder")


def option_table() -> str:
    """Options that belong to one command and are no settings."""
    rows = [
        [f"`{path}`", f"`{parameter.opts[0]}`", f"`{parameter.envvar}`"]
        for path, command, _ in commands()
        for parameter in command.params
        if isinstance(parameter, click.Option) and parameter.envvar is not None
    ]
    return table(("command", "flag", "variable"), rows)


def error_table() -> str:
    """Every error that a client can meet."""
    rows = []
    for code, row in TABLE.items():
        retry = "yes" if row.retryable else ""
        rows.append([f"`{code.value}`", _CASES[code], str(row.http_status), f"`{row.type}`", row.grpc_status, retry])
    return table(("code", "case", "HTTP", "type", "gRPC", "a retry may help"), rows)


def refused_table() -> str:
    """Options that are refused by name, and the values with which they may be sent."""
    rows = [[f"`{name}`", _harmless(no_op)] for name, no_op in NO_OPS.items()]
    rows += [[f"`messages[].{name}`", _harmless(no_op)] for name, no_op in MESSAGE_NO_OPS.items()]
    return table(("parameter", "accepted, since it asks for nothing"), rows)


def _harmless(no_op: NoOp) -> str:
    values = ["null", *(json.dumps(value) for value in _NOTHING if no_op(value))]
    return ", ".join(f"`{value}`" for value in values)


def method_table() -> str:
    """The RPCs of our services."""
    services = (
        generation_pb2.DESCRIPTOR.services_by_name["GenerationService"],
        model_pb2.DESCRIPTOR.services_by_name["ModelService"],
    )
    return table(("method", "takes", "answers"), [row for service in services for row in _methods(service)])


def _methods(service: ServiceDescriptor) -> Iterable[list[str]]:
    for method in service.methods:
        stream = "a stream of " if method.server_streaming else ""
        name = f"{service.full_name}/{method.name}"
        yield [f"`{name}`", f"`{method.input_type.name}`", f"{stream}`{method.output_type.name}`"]


def catalogue_table() -> str:
    """The models that have a name."""
    rows = []
    for entry in CATALOGUE.values():
        origin = entry.origin
        size = f"{origin.wheel_bytes / 1e6:.0f} MB" if isinstance(origin, WheelFile) else "–"
        rows.append([f"`{entry.id}`", f"`{origin}`", size, entry.license])
    return table(("id", "comes from", "download", "licence"), rows)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


REGIONS: Mapping[str, Callable[[], str]] = {
    "commands": command_table,
    "commands-readme": lambda: command_table("docs/cli.md", nested=False),
    "help": help_texts,
    "settings": settings_tables,
    "options": option_table,
    "errors": error_table,
    "refused": refused_table,
    "methods": method_table,
    "catalogue": catalogue_table,
}
"""What makes each part."""


if __name__ == "__main__":
    main()
