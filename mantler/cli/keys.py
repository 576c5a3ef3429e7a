"""``mantler keys``: make, list and revoke API keys."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from mantler.cli.errors import BadUsage, CliError
from mantler.cli.expiry import ALLOWED, parse_expiry, show_time
from mantler.cli.options import json_option, option, settings_options
from mantler.cli.settings import read
from mantler.cli.terminal import note, print_json, print_table
from mantler.config import FacadeSettings

if TYPE_CHECKING:
    from mantler.tenancy.store import KeyRecord

_home_option = settings_options(FacadeSettings, only=("home",))


@click.group()
def keys() -> None:
    """Make, list and revoke API keys. They live in MANTLER_HOME; a running facade sees every change at once.

    \b
    Examples:
      mantler keys create --name ci --models smollm2:135m --rpm 60 --expires 30d
      mantler keys list --json
      mantler keys revoke key_7Qm2…
    """


@keys.command()
@option("--name", env="MANTLER_KEY_NAME", help="What the key is for.", default="default", show_default=True)
@option(
    "--models",
    env="MANTLER_KEY_MODELS",
    help="Models that it may use, separated by commas; may be given several times. Default: all.",
    metavar="MODEL",
    multiple=True,
)
@option("--rpm", env="MANTLER_KEY_RPM", help="Requests per minute. Default: no limit.", type=click.IntRange(1, 10**9))
@option("--expires", env="MANTLER_KEY_EXPIRES", help=f"{ALLOWED.capitalize()}. Default: never.", metavar="WHEN")
@json_option
@_home_option
def create(
    name: str, models: tuple[str, ...], rpm: int | None, expires: str | None, json: bool, flags: dict[str, object]
) -> None:
    """Make a key and print it on stdout. It is shown this once: only a hash of it is stored.

    \b
    Examples:
      export MANTLER_KEY=$(mantler keys create --name laptop)
      mantler keys create --models smollm2:135m --rpm 60 --expires 2030-12-31 --json
    """
    settings = read(FacadeSettings, flags)
    allowed = tuple(part.strip() for item in models for part in item.split(",") if part.strip())
    if models and not allowed:
        raise BadUsage("--models: names no model", hint="leave it out for a key that may use all models")
    try:
        expires_unix_s = parse_expiry(expires, time.time()) if expires else None
    except ValueError as error:
        raise BadUsage(f"--expires: {error}, got {expires!r}") from error
    key, record = asyncio.run(_create(settings.database_url, name, allowed or None, rpm, expires_unix_s))
    if json:
        print_json({"key": key, **asdict(record)})
    else:
        note(f"Key {record.id} ({record.name}) is ready. It is shown this once:")
        click.echo(key)


@keys.command("list")
@json_option
@_home_option
def list_keys(json: bool, flags: dict[str, object]) -> None:
    """List all keys, the expired and revoked ones too. The keys themselves are not stored.

    \b
    Examples:
      mantler keys list
      mantler keys list --json | jq -r '.[].id'
    """
    settings = read(FacadeSettings, flags)
    records = asyncio.run(_list(settings.database_url))
    if json:
        print_json([asdict(record) for record in records])
    elif records:
        headers = ("id", "name", "key", "state", "models", "rpm", "expires (UTC)", "created (UTC)")
        print_table(headers, [_row(record) for record in records])
    else:
        note("No keys. `mantler keys create` makes one.")


@keys.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@_home_option
def revoke(ids: tuple[str, ...], flags: dict[str, object]) -> None:
    """End keys for good, from their next request on. `mantler keys list` shows the ids.

    \b
    Examples:
      mantler keys revoke key_7Qm2…
    """
    settings = read(FacadeSettings, flags)
    missing = asyncio.run(_revoke(settings.database_url, ids))
    for key_id in ids:
        if key_id not in missing:
            note(f"{key_id} is revoked.")
    if missing:
        raise CliError(f"there is no key {', '.join(missing)}", hint="`mantler keys list` shows the ids")


async def _create(
    url: str, name: str, models: tuple[str, ...] | None, rpm: int | None, expires_unix_s: int | None
) -> tuple[str, KeyRecord]:
    from mantler.tenancy.store import KeyStore

    async with await KeyStore.open(url) as store:
        return await store.create(name, allowed_models=models, requests_per_minute=rpm, expires_unix_s=expires_unix_s)


async def _list(url: str) -> list[KeyRecord]:
    from mantler.tenancy.store import KeyStore

    async with await KeyStore.open(url) as store:
        return await store.list_keys()


async def _revoke(url: str, ids: tuple[str, ...]) -> list[str]:
    from mantler.tenancy.store import KeyStore

    async with await KeyStore.open(url) as store:
        return [key_id for key_id in ids if await store.revoke(key_id) is None]


async def first_key(url: str) -> str | None:
    """A new key where none exists yet, to be shown once; otherwise ``None``."""
    from mantler.tenancy.store import KeyStore

    async with await KeyStore.open(url) as store:
        if await store.list_keys():
            return None
        key, _ = await store.create("first key")
        return key


def _row(record: KeyRecord) -> tuple[str, ...]:
    return (
        record.id,
        record.name,
        record.prefix,
        _state(record, time.time()),
        "all" if record.allowed_models is None else ",".join(record.allowed_models),
        "no limit" if record.requests_per_minute is None else str(record.requests_per_minute),
        "never" if record.expires_unix_s is None else show_time(record.expires_unix_s),
        show_time(record.created_unix_s),
    )


def _state(record: KeyRecord, now_unix_s: float) -> str:
    if record.revoked_unix_s is not None:
        return "revoked"
    return "expired" if record.expires_unix_s is not None and record.expires_unix_s <= now_unix_s else "active"
