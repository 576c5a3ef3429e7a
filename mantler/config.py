"""Settings: each field is a command-line flag, an environment variable and a key of the settings file.

The flag ``--max-batch`` of ``mantler runtime`` is ``MANTLER_MAX_BATCH`` in the environment and ``max_batch`` in
``$MANTLER_HOME/config.toml``; a flag wins over the environment, the environment over the file. The description of
a field is its help text. :mod:`mantler.cli.options` makes the flags, :mod:`mantler.cli.settings` reads the values
and says where a bad one came from.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.config import JsonDict
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from mantler.tenancy.keys import (
    MIN_SECRET_CHARS,
    OPERATOR_PREFIX,
    PREFIX,
    TOKEN_PREFIX,
    is_operator_token,
    is_token,
    is_well_formed,
)

ENV_PREFIX = "MANTLER_"
CONFIG_FILE = "config.toml"
SECRET: JsonDict = {"secret": True}
"""``json_schema_extra`` of a field that has no flag, because other users of a machine can read its processes' flags."""

LogLevel = Literal["debug", "info", "warning", "error"]


def split_address(address: str) -> tuple[str, int]:
    """``HOST:PORT`` as its two parts; IPv6 hosts stand in brackets. Raises ``ValueError``."""
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    port_is_good = port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535
    if (
        not (colon and bare and port_is_good)
        or any(c in "[]" or c.isspace() for c in bare)
        or (":" in host) > bracketed
    ):
        raise ValueError("must be HOST:PORT with a port from 0 to 65535, for example 127.0.0.1:8080")
    return bare, int(port)


def join_address(host: str, port: int) -> str:
    """The opposite of :func:`split_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _address(value: str) -> str:
    split_address(value)
    return value


def _api_key(value: str) -> str:
    if not is_well_formed(value):
        raise ValueError(f"must be {PREFIX} and at least {MIN_SECRET_CHARS} further letters, digits, '-' or '_'")
    return value


MAX_MACHINE_NAME_CHARS = 128


def _machine_token(value: str) -> str:
    if not is_token(value):
        raise ValueError(f"must be {TOKEN_PREFIX} and what `mantler tokens create` printed after it")
    return value


def _operator_token(value: str) -> str:
    if not is_operator_token(value):
        raise ValueError(f"must be {OPERATOR_PREFIX} and what stands after it in operator-token of the facade's home")
    return value


def _machine_name(value: str) -> str:
    if not 0 < len(value) <= MAX_MACHINE_NAME_CHARS or not value.isprintable():
        raise ValueError(f"must be 1 to {MAX_MACHINE_NAME_CHARS} printable characters")
    return value


def _endpoint(value: str) -> str:
    scheme, _, address = value.rstrip("/").partition("://")
    if scheme not in ("http", "https"):
        raise ValueError("must be http://HOST:PORT or https://HOST:PORT")
    split_address(address)
    return value


def _etcd_prefix(value: str) -> str:
    if not (value.startswith("/") and len(value) > 1 and value.isprintable()) or value.endswith("/"):
        raise ValueError("must begin with '/' and not end with it, for example /mantler")
    return value


_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,2})?", re.ASCII)


def _device(value: str) -> str:
    if not _DEVICE.fullmatch(value):
        raise ValueError("must be auto, cpu, cuda or cuda:N with N from 0 to 99")
    return value


def _split_commas(value: object) -> object:
    """``a, b`` of an environment variable as a list; flags and the file already give one."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


_MODEL_PART = r"[a-z0-9]([a-z0-9._-]{0,78}[a-z0-9_-])?"
_MODEL_ID = re.compile(rf"{_MODEL_PART}(:{_MODEL_PART})?", re.IGNORECASE | re.ASCII)


def _model_id(value: str) -> str:
    if not _MODEL_ID.fullmatch(value):
        raise ValueError("must be the id of a model, such as smollm2:135m")
    return value


Address = Annotated[str, AfterValidator(_address)]
"""A ``HOST:PORT``. Port 0 lets the system choose one."""

Addresses = Annotated[list[Address], NoDecode, BeforeValidator(_split_commas)]
"""Like :data:`StringList`, of addresses."""

Endpoints = Annotated[list[Annotated[str, AfterValidator(_endpoint)]], NoDecode, BeforeValidator(_split_commas)]

EtcdPrefix = Annotated[str, AfterValidator(_etcd_prefix)]

StringList = Annotated[list[str], NoDecode, BeforeValidator(_split_commas)]
"""Several strings: a flag is repeated, an environment variable is separated by commas."""


DeviceName = Annotated[str, AfterValidator(_device)]

MachineName = Annotated[str, AfterValidator(_machine_name)]

ModelId = Annotated[str, AfterValidator(_model_id)]

ModelIds = Annotated[list[ModelId], NoDecode, BeforeValidator(_split_commas)]
"""Like :data:`StringList`, of ids in any spelling that the store takes."""


def absolute(path: Path, kind: str = "folder") -> Path:
    """``path`` from the root on, ``~`` replaced. Raises ``ValueError`` where nobody knows whose home that is."""
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        raise ValueError(f"must be a {kind}; no home folder is known for the user behind its ~") from None


Folder = Annotated[Path, AfterValidator(absolute)]


def _file(path: Path) -> Path:
    return absolute(path, "file")


File = Annotated[Path, AfterValidator(_file)]


def default_home() -> Path:
    """``MANTLER_HOME``, or ``~/.mantler``. Raises ``ValueError`` like :func:`absolute`."""
    return absolute(Path(os.environ.get(f"{ENV_PREFIX}HOME") or "~/.mantler"))


class _FileSource(TomlConfigSettingsSource):
    """The file in the home. Files that it names lie where it lies, unless their paths say otherwise."""

    def __init__(self, settings_cls: type[BaseSettings], home: Path) -> None:
        super().__init__(settings_cls, toml_file=home / CONFIG_FILE)
        self._home = home

    def __call__(self) -> dict[str, Any]:
        """See pydantic."""
        found = dict(super().__call__())
        for name, field in self.settings_cls.model_fields.items():
            value = found.get(name)
            if isinstance(value, str) and not value.startswith("~") and File in get_args(field.annotation):
                found[name] = str(self._home / value)
        return found


OperatorToken = Annotated[str, AfterValidator(_operator_token)]


class Settings(BaseSettings):
    """What every process needs to know."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="ignore", frozen=True, env_ignore_empty=True)

    home: Folder = Field(default_factory=default_home, description="Folder of models, keys and settings.")
    log_level: LogLevel = Field("info", description="The least important log lines to print.")
    log_format: Literal["text", "json"] = Field("text", description="Log lines for people or for machines.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then the environment, then the file, which lies in the home that the first two name.

        Raises ``ValueError`` where that home cannot be told.
        """
        given = init_settings().get("home")
        home = absolute(Path(given)) if given else default_home()
        return init_settings, env_settings, _FileSource(settings_cls, home)

    @property
    def models_dir(self) -> Path:
        """Where converted models live."""
        return self.home / "models"

    @property
    def database_url(self) -> str:
        """The SQLAlchemy address of the keys' database."""
        return f"sqlite+aiosqlite:///{self.home / 'mantler.db'}"


class GrpcSettings(Settings):
    """What is needed besides by all that opens or accepts gRPC connections."""

    tls_cert: File | None = Field(None, description="Certificate that this process shows, PEM, with its chain below.")
    tls_key: File | None = Field(None, description="Private key of the certificate, PEM.")
    tls_ca: File | None = Field(
        None,
        description="Authority, PEM, that the certificates of others must come from: those of servers, and on a "
        "server those that callers must show.",
    )
    insecure: bool = Field(False, description="Allow gRPC without TLS beyond loopback.")


class MeshSettings(GrpcSettings):
    """What machines and facades need besides to find each other in etcd."""

    etcd: Endpoints = Field(
        default_factory=list,
        description="Endpoint of etcd, in which machines announce themselves and facades find them, such as "
        "http://10.0.0.5:2379; may be given several times.",
    )
    etcd_prefix: EtcdPrefix = Field("/mantler", description="Beginning of the keys in etcd. Each mesh has its own.")
    etcd_user: str = Field("", description="User of etcd, where it asks for one.")
    etcd_password: str | None = Field(
        None, description="Password of the user of etcd.", json_schema_extra=SECRET, repr=False
    )


class RuntimeSettings(MeshSettings):
    """``mantler runtime``: one process that runs models on this machine."""

    runtime: Address = Field("127.0.0.1:50051", description="The runtime's gRPC address, HOST:PORT.")
    model: ModelIds = Field(
        default_factory=lambda: ["smollm2:135m"],
        description="Id of a model to load at start, known or pulled before; may be given several times.",
    )
    device: DeviceName = Field(
        "auto",
        description="What models run on: auto, cpu, cuda or cuda:N. auto means CUDA for models that are stored for it, "
        "where a card, its driver and mantler[gpu] are there, and the CPU otherwise.",
    )
    threads: int = Field(0, ge=0, le=1024, description="Threads of ONNX Runtime; 0 means one per physical core.")
    max_batch: int = Field(32, ge=1, le=1024, description="Requests that run at the same time, per model.")
    max_queue: int = Field(128, ge=0, le=100_000, description="Requests that may wait for a place, per model.")
    max_request_tokens: int = Field(
        0, ge=0, le=2**24, description="Prompt and output of one request together; 0 takes what model and memory allow."
    )
    kv_memory_mb: int = Field(
        0,
        ge=0,
        le=2**24,
        description="Memory for keys and values in MB, per model; 0 takes what max_batch full requests need, but no "
        "more than 40 % of what is free.",
    )
    prefill_chunk: int = Field(
        128,
        ge=16,
        le=4096,
        description="Prompt tokens in one step; four times as many while nobody waits for a next token.",
    )
    drain_timeout_s: float = Field(
        30.0, ge=0, le=3600, description="How long running requests may finish after SIGTERM, in seconds."
    )
    mesh: Addresses = Field(
        default_factory=list,
        description="Facade whose mesh this machine joins, HOST:PORT of its gRPC server; may be given several times. "
        "Needs a machine token in MANTLER_MACHINE_TOKEN.",
    )
    machine_id: MachineName | None = Field(
        None, description="Name of this machine in a mesh, instead of its host name and the port of --runtime."
    )
    reach: Literal["auto", "dial", "tunnel"] = Field(
        "auto",
        description="How facades reach this machine: they dial it, or use a tunnel that it opens. auto means a tunnel "
        "where --runtime is on the loopback interface and the facade is not.",
    )
    advertise: Address | None = Field(
        None, description="HOST:PORT under which facades dial this machine, where --runtime does not say it."
    )
    machine_token: Annotated[str, AfterValidator(_machine_token)] | None = Field(
        None,
        description="Lets this machine join a mesh (mt_live_…); `mantler tokens create` on the facade makes one.",
        json_schema_extra=SECRET,
        repr=False,
    )


class FacadeSettings(MeshSettings):
    """``mantler facade``: REST and SSE for OpenAI clients."""

    http: Address = Field("127.0.0.1:8080", description="Where the facade serves HTTP, HOST:PORT.")
    grpc: Address = Field(
        "127.0.0.1:50050", description="Where the facade serves gRPC, to internal services and machines, HOST:PORT."
    )
    http_tls_cert: File | None = Field(
        None, description="Certificate for HTTPS instead of HTTP, PEM, with its chain below."
    )
    http_tls_key: File | None = Field(None, description="Private key of the certificate for HTTPS, PEM.")
    runtime: Address = Field("127.0.0.1:50051", description="The runtime's gRPC address, HOST:PORT.")
    machines: Addresses = Field(
        default_factory=list,
        description="Runtime of another machine, HOST:PORT; may be given several times. Requests are spread over all "
        "of them, and --runtime counts only where it is given as well.",
    )
    resume_within_s: float = Field(
        10.0,
        ge=0,
        le=600,
        description="How long a stream that lost its machine waits for another one, or for the same one to come back, "
        "in seconds.",
    )
    request_timeout_s: float = Field(
        600.0, gt=0, le=86_400, description="Deadline of one generation in seconds, waiting included."
    )
    ping_interval_s: float = Field(
        10.0, gt=0, le=3600, description="Silence after which a stream gets an SSE comment, in seconds."
    )
    max_body_mb: int = Field(32, ge=1, le=1024, description="Largest request body in MiB.")
    max_connections: int = Field(4096, ge=1, le=1_000_000, description="Generations that may be open at once.")
    cors_origins: StringList = Field(
        default_factory=lambda: ["*"], description="Origin that browsers may call from; may be given several times."
    )
    drain_timeout_s: float = Field(
        30.0, ge=0, le=3600, description="How long running requests may finish after SIGTERM, in seconds."
    )
    bootstrap_key: Annotated[str, AfterValidator(_api_key)] | None = Field(
        None,
        description="A key that exists from the first start on, instead of a minted one (mk_live_…).",
        json_schema_extra=SECRET,
        repr=False,
    )

    operator_token: OperatorToken | None = Field(
        None,
        description="What operators show (mo_live_…), instead of what stands in operator-token of --home.",
        json_schema_extra=SECRET,
        repr=False,
    )

    @property
    def runtimes(self) -> list[str]:
        """The addresses of all runtimes, each once."""
        own = [self.runtime] if "runtime" in self.model_fields_set or not self.machines else []
        return list(dict.fromkeys([*own, *self.machines]))


class UpSettings(Settings):
    """``mantler up``: what it needs besides the settings of the two processes that it starts."""

    start_timeout_s: float = Field(
        300.0, gt=0, le=86_400, description="How long a process may take until it serves, in seconds."
    )


class ClientSettings(GrpcSettings):
    """The commands that talk to a running runtime."""

    runtime: Address = Field("127.0.0.1:50051", description="The runtime's gRPC address, HOST:PORT.")


class OperatorSettings(GrpcSettings):
    """The commands that operate a mesh, through a facade."""

    grpc: Address = Field("127.0.0.1:50050", description="The facade's gRPC address, HOST:PORT.")
    operator_token: OperatorToken | None = Field(
        None,
        description="Shown to the facade (mo_live_…), instead of what stands in operator-token of --home.",
        json_schema_extra=SECRET,
        repr=False,
    )


ALL_SETTINGS: tuple[type[Settings], ...] = (
    RuntimeSettings,
    FacadeSettings,
    UpSettings,
    ClientSettings,
    OperatorSettings,
)
"""Together they hold every key that the settings file may have."""
