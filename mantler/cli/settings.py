"""Reads settings from flags, environment and file, and says where a bad value came from."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from mantler.cli.errors import BadUsage
from mantler.config import ALL_SETTINGS, CONFIG_FILE, ENV_PREFIX, SECRET, Settings, absolute, default_home

SettingsT = TypeVar("SettingsT", bound=Settings)


def read(cls: type[SettingsT], flags: Mapping[str, Any]) -> SettingsT:
    """The settings of ``cls``; ``flags`` holds the given ones only. Raises :class:`BadUsage` naming the bad one."""
    file = _home(flags.get("home")) / CONFIG_FILE
    in_file = _read_file(file)
    try:
        return cls(**flags)
    except ValidationError as error:
        problem = error.errors()[0]
    name = str(problem["loc"][0])
    field = cls.model_fields[name]
    own_words = problem.get("ctx", {}).get("error")
    reason = f"must be {wanted}" if (wanted := allowed(field)) else str(own_words or problem["msg"])
    got = "" if is_secret(field) else f", got {_shown(problem['input'])}"
    raise BadUsage(
        f"{_origin(name, flags, in_file, file)}: {reason}{got}",
        hint=field.description,
    )


def flag_name(name: str) -> str:
    """The flag of a field."""
    return "--" + name.replace("_", "-")


def variable_name(name: str) -> str:
    """The environment variable of a field."""
    return ENV_PREFIX + name.upper()


def is_secret(field: FieldInfo) -> bool:
    """Whether the field must not stand on a command line or in an error."""
    return field.json_schema_extra == SECRET


def allowed(field: FieldInfo) -> str:
    """The values that a field takes, in words that follow "must be"; empty where its own validator says it best."""
    if get_origin(field.annotation) is Literal:
        return "one of " + ", ".join(str(value) for value in get_args(field.annotation))
    if field.annotation is bool:
        return "true or false"
    if field.annotation not in (int, float):
        return ""
    kind = "a whole number" if field.annotation is int else "a number"
    return " ".join([kind, *bounds(field)])


def bounds(field: FieldInfo) -> list[str]:
    """A number's range in words, for example ``["from 1 to 1024"]``."""
    low: Any = next((rule for rule in field.metadata if isinstance(rule, Ge | Gt)), None)
    high: Any = next((rule for rule in field.metadata if isinstance(rule, Le | Lt)), None)
    match low, high:
        case Ge(), Le():
            return [f"from {_number(low.ge)} to {_number(high.le)}"]
        case Gt(), Le():
            return [f"above {_number(low.gt)}, at most {_number(high.le)}"]
        case None, None:
            return []
        case _:
            raise TypeError(f"no words for the bounds {low} and {high}")


def _number(value: Any) -> str:
    return f"{value:.15g}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _home(flag: object) -> Path:
    try:
        return absolute(Path(str(flag))) if flag else default_home()
    except ValueError as error:
        name = flag_name("home") if flag else variable_name("home")
        got = flag or os.environ.get(variable_name("home"))
        raise BadUsage(
            f"{name}: {error}, got {_shown(got)}", hint=f"{Settings.model_fields['home'].description}"
        ) from error


def _read_file(path: Path) -> dict[str, object]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise BadUsage(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadUsage(f"{path} is not a TOML file: {error}") from error
    known = {name for cls in ALL_SETTINGS for name in cls.model_fields} - {"home"}
    for key in content:
        if key not in known:
            raise BadUsage(
                f"{key} in {path}: there is no such setting", hint=f"the settings: {', '.join(sorted(known))}"
            )
    return content


def _origin(name: str, flags: Mapping[str, object], in_file: Mapping[str, object], file: Path) -> str:
    if name in flags:
        return flag_name(name)
    if any(key.upper() == variable_name(name) and value for key, value in os.environ.items()):
        return variable_name(name)
    return f"{name} in {file}" if name in in_file else flag_name(name)
