"""Turns the fields of settings classes into options of a command."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from mantler.cli.settings import bounds, flag_name, is_secret, variable_name
from mantler.cli.values import Number
from mantler.config import Address, File, Folder, GrpcSettings, Settings

Command = Callable[..., None]

GRPC_FIELDS = tuple(name for name in GrpcSettings.model_fields if name not in Settings.model_fields)
"""For the ``only`` of commands that speak gRPC."""
_HOME = "~/.mantler"


def option(
    *names: str,
    env: str,
    help: str,  # noqa: A002
    shown_default: str | None = None,
    **attributes: Any,
) -> Callable[[Command], Command]:
    """An option that is no setting: of one command, with a variable of its own, never in the settings file.

    ``shown_default`` says in words what happens without it.
    """
    kind = attributes.get("type")
    notes = [] if shown_default is None else [f"default: {shown_default}"]
    notes += [kind.range] if isinstance(kind, Number) else []
    return click.option(*names, envvar=env, help=f"{help} [{'; '.join([*notes, f'env: {env}'])}]", **attributes)


json_option = option("--json", env="MANTLER_JSON", help="Print JSON instead of a table.", is_flag=True)
"""For commands whose output a script may want; the argument is ``json``."""


def settings_options(
    *classes: type[Settings], only: Collection[str] | None = None, meanings: Mapping[str, str] | None = None
) -> Callable[[Command], Command]:
    """Gives a command one option per field of ``classes``, and the argument ``flags``: the options that were given.

    ``only`` names the fields that the command has a use for; without it, it has one for all. ``meanings`` are the
    descriptions of those that mean something else to this command.

    The values are neither parsed nor checked here: :func:`mantler.cli.settings.read` does it, so that a flag,
    a variable and a key of the file obey the same rules and meet the same errors.
    """
    fields: dict[str, FieldInfo] = {}
    for cls in classes:
        fields.update({name: field for name, field in cls.model_fields.items() if not is_secret(field)})
    if only is not None:
        fields = {name: fields[name] for name in only}

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def command(**arguments: Any) -> None:
            given = {name: arguments.pop(name) for name in fields}
            flags = {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in given.items()
                if value not in (None, ())
            }
            function(flags=flags, **arguments)

        decorated: Command = command
        for name, field in reversed(fields.items()):
            decorated = _option(name, field, (meanings or {}).get(name, field.description))(decorated)
        return decorated

    return decorate


def as_arguments(flags: Mapping[str, object], cls: type[Settings]) -> list[str]:
    """Given flags as a command line again, as far as ``cls`` has them."""
    arguments: list[str] = []
    for name, value in flags.items():
        if value is True and name in cls.model_fields:
            arguments.append(flag_name(name))
        elif name in cls.model_fields:
            for item in value if isinstance(value, list) else [value]:
                arguments += [flag_name(name), str(item)]
    return arguments


def _option(name: str, field: FieldInfo, meaning: str | None) -> Callable[[Command], Command]:
    help_text = f"{meaning} [{'; '.join(_notes(name, field))}]"
    if field.annotation is bool:
        return click.option(flag_name(name), name, is_flag=True, default=None, help=help_text)
    return click.option(
        flag_name(name),
        name,
        default=None,
        multiple=_is_list(field),
        metavar=_metavar(name, field),
        help=help_text,
    )


def _notes(name: str, field: FieldInfo) -> list[str]:
    """What the help text says in brackets: default, range, variable."""
    default = _HOME if name == "home" else field.get_default(call_default_factory=True, validated_data={})
    if default is None or default is False or default == []:
        return [f"env: {variable_name(name)}"]
    shown = ", ".join(default) if isinstance(default, list) else f"{default:g}" if _is_number(default) else default
    return [f"default: {shown}", *bounds(field), f"env: {variable_name(name)}"]


def _metavar(name: str, field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return "[" + "|".join(get_args(field.annotation)) + "]"
    if field.annotation is int:
        return "N"
    if field.annotation is float:
        return "SECONDS" if name.endswith("_s") else "NUMBER"
    if get_args(Address)[1] in field.metadata or Address in get_args(field.annotation):
        return "HOST:PORT"
    if field.annotation == File | None:
        return "FILE"
    return "FOLDER" if field.annotation is get_args(Folder)[0] else name.split("_")[-1].rstrip("s").upper()


def _is_list(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is list


def _is_number(value: object) -> bool:
    return isinstance(value, float)
