"""``mantler certs``: an authority of one's own, and certificates for machines and facades."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mantler.cli.commands import Group
from mantler.cli.errors import CliError
from mantler.cli.expiry import show_time
from mantler.cli.options import json_option, option, settings_options
from mantler.cli.settings import read
from mantler.cli.terminal import note, print_json, print_table
from mantler.config import Settings

if TYPE_CHECKING:
    from mantler.security.authority import Issued

FOLDER = "certs"
_HOME = "~/.mantler"
"""The usual home, where the files are suggested to lie on the other machine."""

_home_option = settings_options(Settings, only=("home",))
_force_option = option("--force", env="MANTLER_CERTS_FORCE", help="Replace what exists.", is_flag=True)


@click.group(cls=Group, meant={"ls": "list", "create": "issue", "new": "issue", "add": "issue"})
def certs() -> None:
    """Make certificates, so that machines talk to each other over TLS.

    They lie in the folder certs of MANTLER_HOME. Whoever has ca.key there can make certificates: keep it on one
    machine.

    \b
    Examples:
      mantler certs init
      mantler certs issue gpu-1 --host gpu-1.lan --host 192.168.1.20
      mantler certs list
    """


@certs.command()
@_force_option
@json_option
@_home_option
def init(force: bool, json: bool, flags: dict[str, object]) -> None:
    """Make an authority, once for all machines. It lasts ten years.

    \b
    Examples:
      mantler certs init
    """
    from mantler.security.authority import make_authority

    made = make_authority(_folder(flags), force=force)
    if json:
        print_json(_as_json(made))
        return
    note(f"The authority is {made.certificate}. Its key, {made.key}, stays on this machine.")
    if force:
        note("Certificates that another authority issued are worth nothing to this one.")
    note("Now make a certificate for each machine and facade: mantler certs issue NAME --host HOST")


@certs.command()
@click.argument("name")
@option(
    "--host",
    env="MANTLER_CERTS_HOST",
    help="DNS name or IP address by which others reach the machine; may be given several times, or separated "
    "by commas. localhost, 127.0.0.1 and ::1 are always in it.",
    metavar="HOST",
    multiple=True,
    required=True,
)
@_force_option
@json_option
@_home_option
def issue(name: str, host: tuple[str, ...], force: bool, json: bool, flags: dict[str, object]) -> None:
    """Make a key and a certificate for one machine or facade.

    It serves for accepting connections and for making them, and lasts a year. Its settings go to stdout.

    \b
    Examples:
      mantler certs issue gpu-1 --host gpu-1.lan --host 192.168.1.20
      mantler certs issue web --host web.lan --json
    """
    from mantler.security.authority import issue as issue_certificate

    folder = _folder(flags)
    hosts = [part.strip() for item in host for part in item.split(",")]
    made = issue_certificate(folder, name, hosts, force=force)
    authority = folder / "ca.pem"
    if json:
        print_json({**_as_json(made), "authority": str(authority)})
        return
    files = " ".join(str(path) for path in (made.certificate, made.key, authority))
    note(f"{name} is good until {_time(made)} UTC, for {', '.join(made.hosts)}.")
    note(f"Copy to {_HOME}/{FOLDER} on its machine, so that only Mantler's user can read the key:")
    note(f"  {files}")
    note(f"Add to {_HOME}/config.toml there:")
    click.echo(f'tls_cert = "{FOLDER}/{made.certificate.name}"')
    click.echo(f'tls_key = "{FOLDER}/{name}.key"')
    click.echo(f'tls_ca = "{FOLDER}/{authority.name}"')


@certs.command("list")
@json_option
@_home_option
def list_certs(json: bool, flags: dict[str, object]) -> None:
    """List the certificates of MANTLER_HOME and when they end.

    \b
    Examples:
      mantler certs list
      mantler certs list --json | jq -r '.[] | select(.days_left < 30).name'
    """
    from mantler.security.authority import list_issued

    folder = _folder(flags)
    found = list_issued(folder)
    if json:
        print_json([_as_json(issued) for issued in found])
    elif found:
        headers = ("name", "for", "ends (UTC)", "days left", "hosts")
        print_table(headers, [_row(issued) for issued in found])
    else:
        note(f"No certificates in {folder}. `mantler certs init` makes an authority.")


def _folder(flags: dict[str, object]) -> Path:
    folder = read(Settings, flags).home / FOLDER
    if folder.exists() and not folder.is_dir():
        raise CliError(f"{folder} is no folder", hint="move it away, or choose another MANTLER_HOME")
    return folder


def _row(issued: Issued) -> tuple[str, ...]:
    kind = "authority" if issued.is_authority else "servers and clients"
    return (issued.name, kind, _time(issued), str(_days_left(issued)), ", ".join(issued.hosts))


def _as_json(issued: Issued) -> dict[str, object]:
    return {
        "name": issued.name,
        "is_authority": issued.is_authority,
        "hosts": issued.hosts,
        "ends_unix_s": int(issued.ends.timestamp()),
        "days_left": _days_left(issued),
        "certificate": str(issued.certificate),
        "key": None if issued.key is None else str(issued.key),
    }


def _days_left(issued: Issued) -> int:
    return (issued.ends - datetime.now(UTC)).days


def _time(issued: Issued) -> str:
    return show_time(int(issued.ends.timestamp()))
