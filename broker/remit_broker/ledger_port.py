"""The ledger, as the pipeline needs it (a part of :mod:`remit_broker.ports`)."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

from remit_broker.core.fold import Fold
from remit_schemas.records import Following, HopClosed, TxnOpened


class LostRace(NamedTuple):
    """Another append came first: the decision was made on a past that is no longer the newest. ``fold`` is the newest."""

    fold: Fold


class Turn(Protocol):
    """The right to append to one txn in this replica; other replicas still race through the compare-and-set."""

    @property
    def fold(self) -> Fold:
        """The newest fold known."""

    @property
    def unclear(self) -> bool:
        """Whether an append ended in an error and its record may be stored all the same."""

    async def append(self, record: Following, grant: str | None) -> Fold | LostRace:
        """Append a sealed record that follows :attr:`fold`. Durable when it returns a Fold. Refuses LEDGER_UNAVAILABLE."""


class Ledger(Protocol):
    """The one truth: an append-only sequence of records per txn."""

    async def create(self, record: TxnOpened, grant: str) -> Fold:
        """Start a txn that this broker drew. Refuses LEDGER_UNAVAILABLE."""

    async def fold(self, tenant: str, txn: str) -> Fold:
        """What this replica knows of ``txn``: an append would find out if it is behind.

        Refuses an unknown txn, a gap, or an unreachable ledger.
        """

    async def newest(self, tenant: str, txn: str) -> Fold:
        """The fold as the ledger has it now. :meth:`fold` may be behind what another replica has appended."""

    async def closing(self, tenant: str, txn: str, hop: str) -> HopClosed:
        """The record that closed a hop. Refuses LEDGER_UNAVAILABLE where there is none."""

    async def grant(self, tenant: str, txn: str, rec: str) -> str:
        """The grant that the record with the hash ``rec`` authorised. Refuses LEDGER_UNAVAILABLE where there is none."""

    def turn(self, tenant: str, txn: str) -> AbstractAsyncContextManager[Turn]:
        """Wait for this replica's turn to append to ``txn``."""
