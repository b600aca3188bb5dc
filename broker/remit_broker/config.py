"""The configuration: one TOML file, every key checked, every mistake named with its place and what is allowed."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from remit_broker.adapters.errors import ConfigError
from remit_schemas.budget import Budget, parse_budget
from remit_schemas.errors import Refusal

FILE = "remit.toml"

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]


class BusConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``url`` names an external NATS server; empty, an embedded one listens on ``port`` (0: a free one).

    ``ledger_bytes`` caps the ledger (0: by the disk alone); from nine tenths of it on nothing new is opened.
    """

    url: str = ""
    port: Port = 0
    sync: Literal["always", "default"] = "always"
    replicas: Literal[1, 3, 5] = 1
    ledger_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0


class HttpConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The HTTP edge. ``auth`` is how a caller is known; ``local`` (the OS user, by a 0600 token file) needs loopback."""

    host: str = "127.0.0.1"
    port: Port = 7480
    auth: Literal["local"] = "local"


class LimitsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Caps of a hop. Times are seconds. ``allow_cycles`` lists ``"caller>callee"`` pairs that may close a loop."""

    hop_ttl: Annotated[float, msgspec.Meta(gt=0, le=60)] = 60.0
    orphan_grace: Annotated[float, msgspec.Meta(ge=0)] = 30.0
    calls_per_second: Seconds = 200.0
    burst: Annotated[int, msgspec.Meta(ge=1)] = 400
    concurrency: Annotated[int, msgspec.Meta(ge=1)] = 2048
    drain: Seconds = 5.0
    allow_cycles: tuple[str, ...] = ()


class TracesConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where spans go by OTLP/HTTP; the standard ``OTEL_EXPORTER_OTLP_*`` variables win. Empty: nowhere."""

    endpoint: str = ""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything ``remit.toml`` may say. Paths are relative to the file's folder."""

    issuer: str = "http://127.0.0.1:7480"
    data: str = "data"
    policies: str = "policies"
    bus: BusConfig = BusConfig()
    http: HttpConfig = HttpConfig()
    limits: LimitsConfig = LimitsConfig()
    traces: TracesConfig = TracesConfig()
    prices: dict[str, str] = {}
    labels: dict[str, tuple[str, ...]] = {}


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration with its file's place resolved."""

    file: Path
    config: Config
    data: Path
    policies: Path
    prices: dict[str, Budget]
    cycles: frozenset[tuple[str, str]]

    @property
    def servers_file(self) -> Path:
        """Where ``remit servers add`` keeps the commands of the servers the broker runs itself."""
        return self.file.parent / "servers.toml"

    @property
    def runtime_file(self) -> Path:
        """Where a running broker says how to reach it."""
        return self.data / "run" / "broker.json"

    @property
    def credentials(self) -> Path:
        """The folder of agents' credentials."""
        return self.data / "credentials"


def find(path: str | None) -> Path:
    """The configuration file: ``path``, else ``./remit.toml``, else the one in the user's configuration folder."""
    if path is not None:
        found = Path(path)
        return (found / FILE if found.is_dir() else found).absolute()
    here = Path(FILE).absolute()
    if here.exists():
        return here
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return home / "remit" / FILE


def load(path: str | None = None) -> Settings:
    """Read and check. Raises :class:`ConfigError` that names the file, the key and what is allowed."""
    file = find(path)
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration at {file}", "make one with: remit init DIR") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not TOML: {error}") from None
    return settings(file, raw)


def settings(file: Path, raw: object) -> Settings:
    """The settings of an already parsed file. Raises :class:`ConfigError`."""
    try:
        config = msgspec.convert(raw, Config, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file}: {_readable(str(error))}") from None
    folder = file.parent
    if config.http.host not in ("127.0.0.1", "::1", "localhost"):
        raise ConfigError(
            f"{file}: http.host is {config.http.host!r}, but http.auth = 'local' is for loopback only",
            "use 127.0.0.1, ::1 or localhost",
        )
    return Settings(
        file=file,
        config=config,
        data=folder / config.data,
        policies=folder / config.policies,
        prices={pattern: _price(file, pattern, text) for pattern, text in config.prices.items()},
        cycles=frozenset(_pair(file, text) for text in config.limits.allow_cycles),
    )


def _readable(message: str) -> str:
    """msgspec's ``… - at `$.bus.port``` turned round: the key first."""
    what, _, where = message.partition(" - at `$")
    key = where.rstrip("`").lstrip(".")
    if "unknown field" in what:
        return f"{key + ': ' if key else ''}{what}; remit init writes a file with every key that exists"
    return f"{key}: {what}" if key else what


def _price(file: Path, pattern: str, text: str) -> Budget:
    try:
        return parse_budget(text)
    except Refusal as bad:
        raise ConfigError(f"{file}: prices.{pattern!r}: {bad.body.message}", bad.body.ask) from None


def _pair(file: Path, text: str) -> tuple[str, str]:
    caller, sign, callee = text.partition(">")
    if not (sign and caller.strip() and callee.strip()):
        raise ConfigError(f"{file}: limits.allow_cycles: {text!r} is no pair", 'write "caller>callee"')
    return caller.strip(), callee.strip()
