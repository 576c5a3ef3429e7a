"""Settings: each field is a command-line flag, an environment variable and a key of the settings file.

The flag ``--max-batch`` of ``mantler runtime`` is ``MANTLER_MAX_BATCH`` in the environment and ``max_batch`` in
``$MANTLER_HOME/config.toml``; a flag wins over the environment, the environment over the file. The description of
a field is its help text. :mod:`mantler.cli.options` makes the flags.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

ENV_PREFIX = "MANTLER_"
LogLevel = Literal["debug", "info", "warning", "error"]


def split_address(address: str) -> tuple[str, int]:
    """``HOST:PORT`` as its two parts; IPv6 hosts stand in brackets. Raises ``ValueError``."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("must be HOST:PORT with a port from 0 to 65535, for example 127.0.0.1:8080")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _address(value: str) -> str:
    split_address(value)
    return value


Address = Annotated[str, AfterValidator(_address)]
"""A ``HOST:PORT``. Port 0 lets the system choose one."""


def default_home() -> Path:
    """``MANTLER_HOME``, or ``~/.mantler``."""
    return Path(os.environ.get("MANTLER_HOME") or Path.home() / ".mantler").expanduser()


class Settings(BaseSettings):
    """What every process needs to know."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="ignore", frozen=True, env_ignore_empty=True)

    home: Path = Field(default_factory=default_home, description="Folder of models, keys and settings.")
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
        """Flags, then the environment, then the file."""
        file = TomlConfigSettingsSource(settings_cls, toml_file=default_home() / "config.toml")
        return init_settings, env_settings, file

    @property
    def models_dir(self) -> Path:
        """Where converted models live."""
        return self.home / "models"

    @property
    def database_url(self) -> str:
        """The SQLAlchemy address of the keys' database."""
        return f"sqlite+aiosqlite:///{self.home / 'mantler.db'}"


class RuntimeSettings(Settings):
    """``mantler runtime``: one process that runs models on this machine."""

    runtime: Address = Field("127.0.0.1:50051", description="Where the runtime serves gRPC, HOST:PORT.")
    model: list[str] = Field(
        default_factory=lambda: ["smollm2:135m"], description="Model to load at start; may be given several times."
    )
    threads: int = Field(0, ge=0, le=1024, description="Threads of ONNX Runtime; 0 means one per physical core.")
    max_batch: int = Field(32, ge=1, le=1024, description="Requests that run at the same time, per model.")
    max_queue: int = Field(128, ge=0, le=100_000, description="Requests that may wait for a slot, per model.")
    max_request_tokens: int = Field(
        0, ge=0, le=2**24, description="Prompt and output of one request together; 0 takes what the memory allows."
    )
    kv_memory_mb: int = Field(
        0, ge=0, le=2**24, description="Memory for keys and values in MB, per model; 0 takes 40 % of what is free."
    )
    prefill_chunk: int = Field(128, ge=16, le=4096, description="Prompt tokens that are computed in one step.")
    drain_timeout_s: float = Field(
        30.0, ge=0, le=3600, description="How long running requests may finish after SIGTERM, in seconds."
    )


class FacadeSettings(Settings):
    """``mantler facade``: REST and SSE for OpenAI clients."""

    http: Address = Field("127.0.0.1:8080", description="Where the facade serves HTTP, HOST:PORT.")
    runtime: Address = Field("127.0.0.1:50051", description="The runtime's gRPC address, HOST:PORT.")
    request_timeout_s: float = Field(
        600.0, gt=0, le=86_400, description="Deadline of one generation in seconds, waiting included."
    )
    ping_interval_s: float = Field(
        10.0, gt=0, le=3600, description="Silence after which a stream gets an SSE comment, in seconds."
    )
    max_body_mb: int = Field(32, ge=1, le=1024, description="Largest request body in MiB.")
    max_connections: int = Field(4096, ge=1, le=1_000_000, description="Generations that may be open at once.")
    cors_origins: list[str] = Field(
        default_factory=lambda: ["*"], description="Origins that browsers may call from; may be given several times."
    )
    drain_timeout_s: float = Field(
        30.0, ge=0, le=3600, description="How long open responses may finish after SIGTERM, in seconds."
    )
    bootstrap_key: str | None = Field(
        None, description="A key that exists from the first start on, instead of a minted one (mk_live_…)."
    )
