"""``mantler keys``: make, list and revoke API keys."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mantler.cli.commands import Group
from mantler.cli.errors import BadUsage, CliError
from mantler.cli.expiry import ALLOWED, parse_expiry, show_time
from mantler.cli.options import json_option, option, settings_options
from mantler.cli.settings import read
from mantler.cli.terminal import note, print_json, print_table
from mantler.cli.values import Number
from mantler.config import FacadeSettings

if TYPE_CHECKING:
    from mantler.tenancy.store import KeyRecord

_home_option = settings_options(FacadeSettings, only=("home",))


@click.group(
    cls=Group,
    meant={"ls": "list", "rm": "revoke", "remove": "revoke", "delete": "revoke", "new": "create", "add": "create"},
)
def keys() -> None:
    """Make, list and revoke API keys. They live in MANTLER_HOME; a running facade sees every change at once.

    \b
    Examples:
      mantler keys create --name ci --models smollm2:135m --rpm 60 --tpm 100000 --expires 30d
      mantler keys list --json
      mantler keys revoke key_57fa008a07fb6950
    """


@keys.command()
@option("--name", env="MANTLER_KEY_NAME", help="What the key is for.", default="default", shown_default="default")
@option(
    "--models",
    env="MANTLER_KEY_MODELS",
    help="Models that it may use, separated by commas; may be given several times.",
    shown_default="all",
    metavar="MODEL",
    multiple=True,
)
@option(
    "--machines",
    env="MANTLER_KEY_MACHINES",
    help="Ids of machines that it may use, separated by commas; may be given several times.",
    shown_default="all",
    metavar="ID",
    multiple=True,
)
@option(
    "--rpm",
    env="MANTLER_KEY_RPM",
    help="Requests per minute.",
    shown_default="no limit",
    type=Number(int, 1, 10**9),
    metavar="N",
)
@option(
    "--tpm",
    env="MANTLER_KEY_TPM",
    help="Tokens per minute, of prompts and answers.",
    shown_default="no limit",
    type=Number(int, 1, 10**9),
    metavar="N",
)
@option(
    "--expires",
    env="MANTLER_KEY_EXPIRES",
    help=f"{ALLOWED.capitalize()}.",
    shown_default="never",
    metavar="WHEN",
)
@json_option
@_home_option
def create(
    name: str,
    models: tuple[str, ...],
    machines: tuple[str, ...],
    rpm: int | None,
    tpm: int | None,
    expires: str | None,
    json: bool,
    flags: dict[str, object],
) -> None:
    """Make a key and print it on stdout. It is shown this once: only a hash of it is stored.

    \b
    Examples:
      export MANTLER_KEY=$(mantler keys create --name laptop)
      mantler keys create --models smollm2:135m --rpm 60 --tpm 100000 --expires 2030-12-31 --json
      mantler keys create --name research --machines gpu1:50051,gpu2:50051
    """
    settings = read(FacadeSettings, flags)
    allowed = _parts(models)
    if models and not allowed:
        raise BadUsage("--models: names no model", hint="leave it out for a key that may use all models")
    on = _parts(machines)
    if machines and not on:
        raise BadUsage("--machines: names no machine", hint="leave it out for a key that may use all machines")
    try:
        expires_unix_s = parse_expiry(expires, time.time()) if expires else None
    except ValueError as error:
        raise BadUsage(f"--expires: {error}, got {expires!r}") from error
    key, record = asyncio.run(
        _create(
            settings.database_url,
            name,
            allowed_models=allowed or None,
            allowed_machines=on or None,
            requests_per_minute=rpm,
            tokens_per_minute=tpm,
            expires_unix_s=expires_unix_s,
        )
    )
    _warn_of_unknown(allowed, settings.models_dir)
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
        headers = ("id", "name", "key", "state", "models", "machines", "rpm", "tpm", "expires (UTC)", "created (UTC)")
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
      mantler keys revoke key_57fa008a07fb6950
    """
    settings = read(FacadeSettings, flags)
    before = asyncio.run(_revoke(settings.database_url, ids))
    for key_id, record in before.items():
        since = record.revoked_unix_s
        note(f"{key_id} is revoked." if since is None else f"{key_id} was revoked already, {show_time(since)} UTC.")
    missing = [key_id for key_id in ids if key_id not in before]
    if missing:
        raise CliError(f"there is no key {', '.join(missing)}", hint="`mantler keys list` shows the ids")


async def _create(url: str, name: str, **granted: Any) -> tuple[str, KeyRecord]:
    """``granted`` is what :meth:`KeyStore.create` takes."""
    from mantler.tenancy.store import KeyStore

    async with await KeyStore.open(url) as store:
        return await store.create(name, **granted)


async def _list(url: str) -> list[KeyRecord]:
    from mantler.tenancy.store import KeyStore

    async with await KeyStore.open(url) as store:
        return await store.list_keys()


async def _revoke(url: str, ids: tuple[str, ...]) -> dict[str, KeyRecord]:
    """Those of ``ids`` that exist, as they were before."""
    from mantler.tenancy.store import KeyStore

    async with await KeyStore.open(url) as store:
        records = {record.id: record for record in await store.list_keys()}
        before = {key_id: records[key_id] for key_id in ids if key_id in records}
        for key_id in before:
            await store.revoke(key_id)
        return before


def _parts(given: tuple[str, ...]) -> tuple[str, ...]:
    """What stands between commas."""
    return tuple(part.strip() for item in given for part in item.split(",") if part.strip())


def _warn_of_unknown(models: tuple[str, ...], models_dir: Path) -> None:
    """A key may be made before its models are pulled, but a slip of the pen should be seen."""
    from runtime_server.models.catalogue import CATALOGUE
    from runtime_server.models.store import ModelStore

    known = {*CATALOGUE, *(manifest.id for manifest in ModelStore(models_dir).list())} if models else set()
    for model_id in models:
        if model_id not in known:
            note(f"warning: no model is stored or known as {model_id!r}; the key may use it once there is one")


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
        "all" if record.allowed_machines is None else ",".join(record.allowed_machines),
        "no limit" if record.requests_per_minute is None else str(record.requests_per_minute),
        "no limit" if record.tokens_per_minute is None else str(record.tokens_per_minute),
        "never" if record.expires_unix_s is None else show_time(record.expires_unix_s),
        show_time(record.created_unix_s),
    )


def _state(record: KeyRecord, now_unix_s: float) -> str:
    if record.revoked_unix_s is not None:
        return "revoked"
    return "expired" if record.expires_unix_s is not None and record.expires_unix_s <= now_unix_s else "active"
