"""One key for each person whose data is kept, in a folder beside everything else: who is erased loses the key, and no copy of the
sealed data opens again, wherever it lies.

A broker never remembers a key from one use to the next: what is destroyed is gone for every process that uses the folder.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import secrets
from pathlib import Path
from typing import Final, Protocol

from nacl.exceptions import CryptoError

from remit_broker.adapters.errors import ConfigError
from remit_broker.adapters.private_files import FILE_MODE, private_folder, read_private, sync_folder
from remit_broker.adapters.secret_store import Sealer

KEY: Final = 32


class SubjectKeys(Protocol):
    """Who holds the keys: a folder here, something else where an operator has it."""

    def subject(self, tenant: str, user: str) -> str:
        """How a person is called wherever their data lies: nobody without the key of these names can guess who it is."""

    async def key(self, subject: str) -> bytes:
        """The key of a person; drawn where there is none. Raises ``OSError`` or ``ValueError``."""

    async def find(self, subject: str) -> bytes | None:
        """The key of a person, where there is one."""

    async def destroy(self, subject: str) -> bool:
        """Whether there was one; there is none when this returns, and none comes back."""


class KeyFolder:
    """A file for each person, mode 0600, holding a key that is itself sealed under ``sealer``."""

    def __init__(self, folder: Path, sealer: Sealer, names: bytes) -> None:
        """``names`` is the key under which the names of files are drawn. Raises :class:`ConfigError` for a folder others can read."""
        self._folder, self._sealer, self._names = private_folder(folder, create=True), sealer, names

    def subject(self, tenant: str, user: str) -> str:
        """32 hex digits: tenants are apart in where the data lies, and here."""
        said = f"remit vault {len(tenant)} {tenant} {user}".encode()
        return hmac.digest(self._names, said, hashlib.sha256).hex()[:32]

    async def key(self, subject: str) -> bytes:
        """The key of a person, drawn where there is none: of processes that draw at once one is first."""
        return await asyncio.to_thread(self._key, subject)

    async def find(self, subject: str) -> bytes | None:
        """The key of a person, where there is one."""
        return await asyncio.to_thread(self._find, subject)

    async def destroy(self, subject: str) -> bool:
        """Unlink the file, durably."""
        return await asyncio.to_thread(self._destroy, subject)

    def _path(self, subject: str) -> Path:
        return self._folder / f"{subject}.key"

    def _key(self, subject: str) -> bytes:
        for _ in range(8):
            if (found := self._find(subject)) is not None:
                return found
            self._draw(subject)
        raise OSError(f"the key {subject} goes as soon as it is drawn")

    def _draw(self, subject: str) -> None:
        path = self._path(subject)
        beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(self._sealer.seal(f"vault {subject}", secrets.token_bytes(KEY)))
                file.flush()
                os.fsync(file.fileno())
            try:
                # A link, not a rename: whoever comes second finds the key of the first, and does not replace it.
                os.link(beside, path)
            except FileExistsError:
                return
        finally:
            beside.unlink(missing_ok=True)
        sync_folder(self._folder)

    def _find(self, subject: str) -> bytes | None:
        path = self._path(subject)
        try:
            sealed = read_private(path)
        except ConfigError as error:
            if not path.exists():
                return None
            raise ValueError(str(error)) from None
        try:
            return self._sealer.unseal(f"vault {subject}", sealed)
        except CryptoError:
            raise ValueError(f"the key {path} was sealed with another key file") from None

    def _destroy(self, subject: str) -> bool:
        try:
            self._path(subject).unlink()
        except FileNotFoundError:
            return False
        finally:
            sync_folder(self._folder)
        return True
