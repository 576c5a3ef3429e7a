"""``mantler doctor``: looks for what is wrong and says what to do about it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable
from dataclasses import asdict

import click

from mantler.cli import checks, device_checks, ports, probe, tls_checks
from mantler.cli.checks import Finding, Status
from mantler.cli.commands import Command
from mantler.cli.errors import EXIT_FAILED, BadUsage
from mantler.cli.options import GRPC_FIELDS, json_option, option, settings_options
from mantler.cli.profile import show_profile
from mantler.cli.settings import read
from mantler.cli.terminal import print_json, style
from mantler.config import FacadeSettings, RuntimeSettings
from mantler.security.errors import SecurityError
from mantler.security.files import TlsFiles, grpc_files, https_files

_COLORS = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "red"}


@click.command(cls=Command)
@option(
    "--profile",
    env="MANTLER_PROFILE",
    help="Instead of checking, ask the running runtime where its steps spend their time.",
    is_flag=True,
)
@json_option
@settings_options(
    RuntimeSettings,
    FacadeSettings,
    only=("home", "http", "http_tls_cert", "http_tls_key", "runtime", "model", "device", *GRPC_FIELDS),
    meanings={
        "http": "Where a facade is looked for, HOST:PORT.",
        "runtime": "Where a runtime is looked for, HOST:PORT.",
        "model": "Id of a model that should be stored; may be given several times.",
    },
)
def doctor(profile: bool, json: bool, flags: dict[str, object]) -> None:
    """Look for what is wrong.

    It checks versions, ONNX Runtime, memory, graphics cards, disk, ports, models, keys and certificates, each with a
    hint.

    Exits with 1 if something that Mantler needs is broken.

    \b
    Examples:
      mantler doctor
      mantler doctor --json | jq '.[] | select(.status != "ok")'
      mantler doctor --profile --runtime 127.0.0.1:50051
    """
    if profile:
        settings = read(RuntimeSettings, flags)
        show_profile(settings.runtime, settings, json)
        return
    findings = [finding for check in _checks(flags) for finding in check]
    if json:
        print_json([{**asdict(finding), "status": finding.status.value} for finding in findings])
    else:
        for finding in findings:
            _show(finding)
    if any(finding.status is Status.FAIL for finding in findings):
        sys.exit(EXIT_FAILED)


def _checks(flags: dict[str, object]) -> Iterable[Iterable[Finding]]:
    yield checks.versions()
    yield checks.onnx_runtime()
    yield device_checks.packages()
    yield checks.processor()
    yield checks.operators()
    yield checks.memory()
    try:
        runtime, facade = read(RuntimeSettings, flags), read(FacadeSettings, flags)
    except BadUsage as error:
        yield [Finding("settings", Status.FAIL, error.message, error.hint)]
        return
    yield device_checks.devices(runtime.device)
    home = list(checks.home(runtime.home))
    yield home
    if any(finding.status is Status.FAIL for finding in home):
        return
    yield checks.model_store(runtime.models_dir, runtime.model)
    yield asyncio.run(_keys(facade)) if (runtime.home / "mantler.db").exists() else _no_keys()
    https = https_files(facade)
    encryption = [*tls_checks.tls("tls", grpc_files(runtime)), *tls_checks.tls("https", https)]
    yield encryption
    if any(finding.status is Status.FAIL for finding in encryption):
        return
    yield _runtime(runtime)
    yield checks.service("facade", facade.http, "--http", lambda: asyncio.run(_facade_serves(facade.http, https)))


def _runtime(settings: RuntimeSettings) -> Iterable[Finding]:
    from mantler.security.transport import Security

    security = Security.load(settings)
    address = ports.reachable(settings.runtime)
    try:
        trouble = asyncio.run(probe.runtime_trouble(address, security))
    except SecurityError as error:
        return [Finding("runtime", Status.FAIL, error.message, error.hint)]
    findings = list(checks.service("runtime", settings.runtime, "--runtime", lambda: trouble is None))
    if trouble is not None and any(finding.status is Status.FAIL for finding in findings):
        findings.append(tls_checks.unanswered(address, trouble, encrypts=security.encrypts))
    return findings


async def _facade_serves(address: str, https: TlsFiles) -> bool:
    return await probe.facade_serves(ports.reachable(address), https)


def _no_keys() -> Iterable[Finding]:
    yield Finding("keys", Status.OK, "none yet", "`mantler up` makes the first, `mantler keys create` more")


async def _keys(settings: FacadeSettings) -> list[Finding]:
    from mantler.errors import MantlerError
    from mantler.tenancy.store import KeyStore

    try:
        async with await KeyStore.open(settings.database_url) as store:
            records = await store.list_keys()
    except MantlerError as error:
        hint = f"check that this user may read and write {settings.home / 'mantler.db'}"
        return [Finding("keys", Status.FAIL, error.message.rstrip("."), hint)]
    return [Finding("keys", Status.OK, f"{len(records)} in the database")]


def _show(finding: Finding) -> None:
    status = style(f"{finding.status.value:4}", _COLORS[finding.status], bold=True)
    click.echo(f"{status}  {finding.check:11}  {finding.detail}")
    if finding.hint:
        click.echo(f"      {'':11}  hint: {finding.hint}")
