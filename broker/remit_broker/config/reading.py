"""Finding the file, reading it, and what it amounts to."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Final

import msgspec

from remit_broker.adapters.errors import ConfigError
from remit_broker.config import parts
from remit_broker.config.checks import sensible
from remit_broker.config.keys import Config
from remit_broker.config.mistakes import mistake
from remit_broker.config.parts import Clients
from remit_broker.core.caps import Caps
from remit_broker.core.extraction import Endorser
from remit_broker.core.label_sources import LabelSources
from remit_broker.core.rates import Rates
from remit_schemas.budget import Budget
from remit_schemas.model_prices import ModelPrice
from remit_schemas.names import DEFAULT_TENANT

FILE: Final = "remit.toml"
MAX_FILE: Final = 1024 * 1024
"""Largest configuration in bytes."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration with its file's place resolved."""

    file: Path
    config: Config
    data: Path
    policies: Path
    prices: dict[str, Budget]
    cycles: frozenset[tuple[str, str]]
    caps: Caps = Caps({})
    models: dict[str, ModelPrice] = {}
    rates: Rates = Rates()
    labels: LabelSources = LabelSources()
    endorsers: tuple[Endorser, ...] = ()
    clients: Clients = Clients()

    @property
    def others(self) -> tuple[str, ...]:
        """The tenants beside the default one, by name."""
        return tuple(sorted(name for name in self.config.tenants if name != DEFAULT_TENANT))

    @property
    def tenants(self) -> tuple[str, ...]:
        """Every tenant, the default one first."""
        return (DEFAULT_TENANT, *self.others)

    def require(self, tenant: str) -> None:
        """Raises :class:`ConfigError` for a tenant that is not there."""
        if tenant not in self.tenants:
            raise ConfigError(
                f"there is no tenant {tenant[:64]!r}",
                f"there is {', '.join(self.tenants)}; [tenants] of {self.file} names them",
            )

    def servers_file_of(self, tenant: str) -> Path:
        """Where ``remit servers add`` keeps the commands of a tenant's servers that the broker runs itself."""
        self.require(tenant)
        return self.file.parent / ("servers.toml" if tenant == DEFAULT_TENANT else f"servers.{tenant}.toml")

    def credentials_of(self, tenant: str) -> Path:
        """The folder of the credentials of a tenant's agents and servers."""
        self.require(tenant)
        folder = self.data / "credentials"
        return folder if tenant == DEFAULT_TENANT else folder / tenant

    @property
    def servers_file(self) -> Path:
        """That of the default tenant."""
        return self.servers_file_of(DEFAULT_TENANT)

    @property
    def runtime_file(self) -> Path:
        """Where a running broker says how to reach it."""
        return self.data / "run" / "broker.json"

    @property
    def credentials(self) -> Path:
        """That of the default tenant."""
        return self.credentials_of(DEFAULT_TENANT)


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
        with file.open("rb") as opened:
            data = opened.read(MAX_FILE + 1)
    except FileNotFoundError:
        where = f"{file}" if path is not None else f"./{FILE}, nor at {file}"
        raise ConfigError(f"there is no configuration at {where}", "make one with: remit init DIR") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > MAX_FILE:
        raise ConfigError(f"{file} has more than {MAX_FILE} bytes", "name the right file")
    try:
        raw = tomllib.loads(data.decode())
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is not UTF-8 text", "name the right file") from None
    except (ValueError, RecursionError) as error:  # beside TOMLDecodeError: numbers too long, tables too deep
        raise ConfigError(
            f"{file} is not TOML: {error}", "mend that line; docs/operations.md shows a whole file"
        ) from None
    return settings(file, raw)


def settings(file: Path, raw: object) -> Settings:
    """The settings of an already parsed file. Raises :class:`ConfigError`."""
    try:
        config = msgspec.convert(raw, Config, strict=True)
    except msgspec.ValidationError as error:
        raise mistake(file, str(error)) from None
    sensible(file, config)
    folder = file.parent
    return Settings(
        file=file,
        config=config,
        data=folder / config.data,
        policies=folder / config.policies,
        prices={pattern: parts.price(file, pattern, text) for pattern, text in config.prices.items()},
        cycles=frozenset(parts.pair(file, text) for text in config.limits.allow_cycles),
        caps=parts.caps(file, config.caps),
        models=parts.models(file, config.models),
        rates=parts.rates(file, config),
        labels=parts.labels(file, config),
        endorsers=parts.endorsers(file, config),
        clients=parts.clients(file, config),
    )
