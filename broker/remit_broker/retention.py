"""What the broker with the HTTP edge does about the vault by itself: completes erasures that were begun, forgets what is old."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from nats.aio.client import Client

from remit_broker.adapters.keyfiles import KeyFiles
from remit_broker.adapters.observer import RecordObserver
from remit_broker.adapters.secret_store import KeySealer
from remit_broker.adapters.subject_keys import KeyFolder
from remit_broker.adapters.vault import KvVault
from remit_broker.config import Settings
from remit_broker.edges.http.vault import VaultDesk
from remit_broker.ports import Observer

FOLDER: Final = "vault"
SECONDS: Final = 30.0
"""Between two rounds; the first is at the start."""


async def open_vault(settings: Settings, keys: KeyFiles, nats: Client, observer: RecordObserver) -> KvVault | None:
    """The vault that the configuration wants, or None. Raises :class:`ConfigError` for keys that are none, or that others can read."""
    config, folder = settings.config.vault, settings.file.parent
    if not config.on:
        return None
    file = folder / config.key_file if config.key_file else None
    where = folder / config.keys if config.keys else settings.data / FOLDER
    vault = KvVault(
        KeyFolder(where, KeySealer.of(file, keys.results_key), keys.digest_key), config.keeps, observer.fault
    )
    await vault.start(nats, settings.config.bus.replicas, config.bytes)
    observer.watch("remit_vault_kept", "Contents that were kept in the vault", lambda: vault.kept)
    observer.watch("remit_vault_failed", "Contents that could not be kept", lambda: vault.failed)
    return vault


class Retention:
    """The vaults of all tenants."""

    def __init__(self, desks: Iterable[VaultDesk], observer: Observer) -> None:
        self._desks, self._observer = tuple(desks), observer
        self.forgotten = 0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.once()
            await asyncio.sleep(SECONDS)

    async def once(self) -> None:
        """One round; what one tenant's ends with, the next one's begins."""
        for desk in self._desks:
            try:
                self.forgotten += await desk.upkeep()
            except Exception as error:
                self._observer.fault("vault", error)
