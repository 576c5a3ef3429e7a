"""``mantler tokens``: make, list and revoke machine tokens."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from mantler.cli.commands import Group
from mantler.cli.errors import CliError
from mantler.cli.expiry import show_time
from mantler.cli.options import json_option, option, settings_options
from mantler.cli.settings import read
from mantler.cli.terminal import note, print_json, print_table
from mantler.config import FacadeSettings

if TYPE_CHECKING:
    from mantler.tenancy.tokens import TokenRecord

_home_option = settings_options(FacadeSettings, only=("home",))


@click.group(
    cls=Group,
    meant={"ls": "list", "rm": "revoke", "remove": "revoke", "delete": "revoke", "new": "create", "add": "create"},
)
def tokens() -> None:
    """Make, list and revoke machine tokens, which let runtimes join a mesh.

    They live in the MANTLER_HOME of a facade, which sees every change at once.

    \b
    Examples:
      mantler tokens create --name gpu1
      mantler tokens list --json
      mantler tokens revoke token_57fa008a07fb6950
    """


@tokens.command()
@option("--name", env="MANTLER_TOKEN_NAME", help="What the token is for.", default="machines", shown_default="machines")
@json_option
@_home_option
def create(name: str, json: bool, flags: dict[str, object]) -> None:
    """Make a token and print it on stdout. It is shown this once: only a hash of it is stored.

    Several machines may have the same one.

    \b
    Examples:
      export MANTLER_MACHINE_TOKEN=$(mantler tokens create --name gpu1)
      mantler tokens create --json | jq -r .token
    """
    settings = read(FacadeSettings, flags)
    token, record = asyncio.run(_create(settings.database_url, name))
    if json:
        print_json({"token": token, **asdict(record)})
    else:
        note(f"Token {record.id} ({record.name}) is ready. It is shown this once:")
        click.echo(token)


@tokens.command("list")
@json_option
@_home_option
def list_tokens(json: bool, flags: dict[str, object]) -> None:
    """List all tokens, the revoked ones too. The tokens themselves are not stored.

    \b
    Examples:
      mantler tokens list
    """
    settings = read(FacadeSettings, flags)
    records = asyncio.run(_list(settings.database_url))
    if json:
        print_json([asdict(record) for record in records])
    elif records:
        print_table(("id", "name", "state", "created (UTC)"), [_row(record) for record in records])
    else:
        note("No tokens. `mantler tokens create` makes one.")


@tokens.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@_home_option
def revoke(ids: tuple[str, ...], flags: dict[str, object]) -> None:
    """End tokens for good. Machines that joined with one are sent away within seconds.

    \b
    Examples:
      mantler tokens revoke token_57fa008a07fb6950
    """
    settings = read(FacadeSettings, flags)
    before = asyncio.run(_revoke(settings.database_url, ids))
    for token_id, record in before.items():
        since = record.revoked_unix_s
        note(f"{token_id} is revoked." if since is None else f"{token_id} was revoked already, {show_time(since)} UTC.")
    missing = [token_id for token_id in ids if token_id not in before]
    if missing:
        raise CliError(f"there is no token {', '.join(missing)}", hint="`mantler tokens list` shows the ids")


async def _create(url: str, name: str) -> tuple[str, TokenRecord]:
    from mantler.tenancy.tokens import TokenStore

    async with await TokenStore.open(url) as store:
        return await store.create(name)


async def _list(url: str) -> list[TokenRecord]:
    from mantler.tenancy.tokens import TokenStore

    async with await TokenStore.open(url) as store:
        return await store.list_tokens()


async def _revoke(url: str, ids: tuple[str, ...]) -> dict[str, TokenRecord]:
    """Those of ``ids`` that exist, as they were before."""
    from mantler.tenancy.tokens import TokenStore

    async with await TokenStore.open(url) as store:
        records = {record.id: record for record in await store.list_tokens()}
        before = {token_id: records[token_id] for token_id in ids if token_id in records}
        for token_id in before:
            await store.revoke(token_id)
        return before


def _row(record: TokenRecord) -> tuple[str, ...]:
    state = "active" if record.revoked_unix_s is None else "revoked"
    return (record.id, record.name, state, show_time(record.created_unix_s))
