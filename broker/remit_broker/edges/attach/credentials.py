"""The credentials file of an attached server: its nkey seed, where the bus is, and the keys that grants are checked with."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from remit_broker.core import nkey
from remit_schemas.canonical import loads
from remit_schemas.errors import Refusal
from remit_schemas.keys import KeySet
from remit_schemas.names import is_principal

MAX_BYTES: Final = 128 * 1024


class CredentialsError(ValueError):
    """The file cannot be used. The text names it and says why and what to do, on one line; it never holds the seed."""


@dataclass(frozen=True)
class Credentials:
    """Who the worker is on the bus and whose grants it believes. ``path`` is where they were read, for reading them again.

    ``lives`` is for how many seconds a connection's permissions last; None: the file does not say.
    """

    agent: str
    bus: str
    issuer: str
    keys: KeySet
    nkey_seed: str = field(repr=False)
    path: Path
    lives: float | None = None


class _File(msgspec.Struct, frozen=True, kw_only=True):
    agent: str
    kind: str
    nkey_seed: str
    bus: str
    issuer: str
    jwks: dict[str, Any]
    connection_seconds: float | None = None


def read_credentials(path: Path | str) -> Credentials:
    """Read a file of mode 0600 as ``remit agents add`` or ``remit servers add`` writes it. Raises :class:`CredentialsError`."""
    where = Path(path)
    try:
        raw = msgspec.convert(loads(_private(where), max_bytes=MAX_BYTES), _File, strict=True)
        keys = KeySet.from_jwks(raw.jwks)
    except (Refusal, msgspec.ValidationError) as error:
        said = error.body.message if isinstance(error, Refusal) else str(error)
        raise CredentialsError(f"{where} is not a credentials file: {said}") from None
    if raw.kind != "mcp":
        raise CredentialsError(
            f"{where} is for the {raw.kind} {raw.agent}: an MCP server needs credentials of kind mcp"
        )
    if not is_principal(raw.agent) or not raw.bus or not raw.issuer:
        raise CredentialsError(f"{where} is not a credentials file: agent, bus and issuer must be set")
    try:
        nkey.seed_bytes("U", raw.nkey_seed)
    except nkey.BadKey:
        raise CredentialsError(f"{where} holds no nkey seed of a user") from None
    return Credentials(raw.agent, raw.bus, raw.issuer, keys, raw.nkey_seed, where, raw.connection_seconds)


def _private(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise CredentialsError(f"{path} does not exist: register the server first") from None
    except OSError as error:
        raise CredentialsError(
            f"{path} cannot be opened ({error.strerror}): it must be a plain file, not a link"
        ) from None
    # On the open file: what was checked is what is read.
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise CredentialsError(f"{path} is not a plain file")
    with os.fdopen(descriptor, "rb") as file:
        # INVARIANT: a seed that others could read is not used (test_credentials_that_others_can_read_are_refused).
        if found.st_mode & 0o077 or found.st_uid != os.geteuid():
            mode = stat.S_IMODE(found.st_mode)
            raise CredentialsError(
                f"{path} can be read by others (mode {mode:04o}, uid {found.st_uid}): run chmod 600 {path}"
            )
        return file.read(MAX_BYTES + 1)
