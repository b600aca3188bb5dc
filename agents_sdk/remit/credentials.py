"""The credentials file of an agent: its nkey seed, where the bus is, and the keys that grants are checked with."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import nkeys

from remit_schemas.canonical import loads
from remit_schemas.errors import Refusal
from remit_schemas.keys import KeySet
from remit_schemas.names import is_principal

MAX_BYTES: Final = 128 * 1024
ENVIRONMENT: Final = "REMIT_CREDENTIALS"
"""A credentials file, or a folder of files ``<name>.json``."""

FOLDERS: Final = (".remit/credentials", "data/credentials")
"""Where the file of an agent is looked for below the current folder."""


class CredentialsError(ValueError):
    """The file cannot be used. The text says which, why and what to do, on one line; it never holds the seed."""


@dataclass(frozen=True)
class Credentials:
    """Who an agent is on the bus, and whose grants it believes (None: what the broker says when the agent attaches)."""

    agent: str
    bus: str
    issuer: str | None
    keys: KeySet | None
    nkey_seed: str = field(repr=False)
    path: Path
    connection_seconds: float | None = None
    """Life of a connection's permissions, where the file says it."""


class _File(msgspec.Struct, frozen=True, kw_only=True):
    agent: str
    bus: str
    nkey_seed: str
    kind: str = "agent"
    issuer: str | None = None
    jwks: dict[str, Any] | None = None
    connection_seconds: float | None = None


def find_credentials(name: str, where: str | os.PathLike[str] | None = None) -> Path:
    """The file of the agent ``name``: ``where`` (a file or a folder), else the environment, else the usual folders.

    Raises :class:`CredentialsError` that names every place that was looked at.
    """
    given = where if where is not None else os.environ.get(ENVIRONMENT)
    if given:
        path = Path(given)
        return path / f"{name}.json" if path.is_dir() else path
    places = [Path(folder) / f"{name}.json" for folder in FOLDERS]
    for place in places:
        if place.exists():
            return place
    looked = ", ".join(map(str, places))
    raise CredentialsError(
        f"no credentials of {name}: looked for {looked}; name the file in {ENVIRONMENT}, or make one with "
        f"remit agents add {name}"
    )


def read_credentials(path: str | os.PathLike[str], name: str) -> Credentials:
    """Read the file of the agent ``name``, of mode 0600 as ``remit agents add`` writes it. Raises :class:`CredentialsError`."""
    where = Path(path)
    try:
        raw = msgspec.convert(loads(_private(where), max_bytes=MAX_BYTES), _File, strict=True)
        keys = KeySet.from_jwks(raw.jwks) if raw.jwks is not None else None
    except (Refusal, msgspec.ValidationError) as error:
        said = error.body.message if isinstance(error, Refusal) else str(error)
        raise CredentialsError(f"{where} is not a credentials file: {said}") from None
    if not is_principal(raw.agent) or not raw.bus:
        raise CredentialsError(f"{where} is not a credentials file: agent and bus must be set")
    if raw.agent != name or raw.kind != "agent":
        raise CredentialsError(f"{where} is for the {raw.kind} {raw.agent}, not for the agent {name}")
    # One without the other would leave half of the trust to whoever answers first.
    if (raw.issuer is None) != (keys is None):
        raise CredentialsError(f"{where} must have both issuer and jwks, or neither")
    _check_seed(raw.nkey_seed, where)
    return Credentials(raw.agent, raw.bus, raw.issuer, keys, raw.nkey_seed, where, raw.connection_seconds)


def _check_seed(seed: str, where: Path) -> None:
    try:
        public = nkeys.from_seed(bytearray(seed.encode())).public_key
    except Exception:
        public = b""
    if not bytes(public).startswith(b"U"):
        raise CredentialsError(f"{where} holds no nkey seed of a user")


def _private(path: Path) -> bytes:
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise CredentialsError(f"{path} does not exist: register the agent first, with remit agents add") from None
    except OSError as error:
        raise CredentialsError(
            f"{path} cannot be opened ({error.strerror}): it must be a plain file, not a link"
        ) from None
    try:
        # On the open file: what was checked is what is read.
        _check_private(os.fstat(descriptor), path)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_BYTES + 1)
    finally:
        os.close(descriptor)


def _check_private(found: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise CredentialsError(f"{path} is not a plain file")
    # INVARIANT: a seed that others could read is not used (test_credentials_that_others_can_read_are_refused).
    if found.st_mode & 0o077 or found.st_uid != os.geteuid():
        mode = stat.S_IMODE(found.st_mode)
        raise CredentialsError(
            f"{path} can be read by others (mode {mode:04o}, uid {found.st_uid}): run chmod 600 {path}"
        )
