"""The index of a broker with the HTTP edge: checked before anything is written, kept up, and asked for what must not lag."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import sqlite3
from pathlib import Path
from typing import Any, Final

from nats.aio.client import Client

from remit_broker.adapters import jetstream_ledger, refusal_stream
from remit_broker.adapters.errors import ConfigError
from remit_broker.adapters.index_tree import Sign
from remit_broker.adapters.jetstream import ApiError, JetStream, Unreachable
from remit_broker.adapters.jetstream_ledger import JetStreamLedger
from remit_broker.adapters.ledger_suspicion import SECONDS as CERTAIN
from remit_broker.adapters.refusal_stream import RefusalStream
from remit_broker.adapters.sqlite_index import SqliteIndex
from remit_broker.adapters.stream_tail import Regressed
from remit_broker.core.evidence import export
from remit_broker.ports import Observer
from remit_schemas.errors import Code, refusal

CHECKPOINT_SECONDS: Final = 2.0
"""How often what has changed is signed, beside the end of every txn."""


class Projection:
    """The index and the streams it follows. ``clustered`` says that the ledger has several replicas."""

    def __init__(
        self, index: SqliteIndex, nats: Client, ledger: JetStreamLedger, refusals: RefusalStream, *, clustered: bool
    ) -> None:
        self.index, self._ledger, self._refusals = index, ledger, refusals
        self._nats = nats
        self._certain = CERTAIN if clustered else 0.0

    @classmethod
    async def open(
        cls, path: Path, nats: Client, ledger: JetStreamLedger, refusals: RefusalStream, *, clustered: bool
    ) -> Projection:
        """Open the index and check the ledger against it. Raises :class:`ConfigError` for a ledger that lost records."""
        self = cls(await SqliteIndex.open(path), nats, ledger, refusals, clustered=clustered)
        try:
            await self.index.check(nats, self._certain)
        except BaseException as error:
            await self.index.close()
            if not isinstance(error, Regressed):
                raise
            raise ConfigError(
                f"the ledger lost records that were acknowledged: {error}",
                "restore the data folder from a backup, or find out who touched it; nothing is written on it until then",
            ) from None
        # INVARIANT: a txn that lost its end is not used (test_a_flipped_bit_in_the_end_of_a_txn_is_not_taken_for_its_end).
        ledger.witnessed(self.index.head)
        return self

    async def seal(self, sign: Sign, observer: Observer) -> None:
        """Sign checkpoints until cancelled: with each end of a txn, and every few seconds of what has changed."""
        self.index.signed_with(sign)
        while True:
            await asyncio.sleep(CHECKPOINT_SECONDS)
            try:
                # A disk that is full is said by the projection: what was not signed now is signed later.
                with contextlib.suppress(sqlite3.OperationalError):
                    await self.index.checkpoint()
            except Regressed as lost:
                self._ledger.halt(str(lost))
                observer.fault("checkpoint", lost)
                return

    async def follow(self, nats: Client, observer: Observer) -> None:
        """Project both streams until cancelled; an end by itself is told."""
        await self.index.run(nats, self._ledger.halt, self._certain)
        observer.fault("index", RuntimeError(self.index.halted or "the projection ended"))

    async def ends(self) -> tuple[int, int]:
        """Where the ledger and the refusals end: as the streams themselves say it, since other replicas write too.

        While the streams cannot be asked, as far as this replica knows.
        """
        known = (self._ledger.high, self._refusals.high)
        if not self._nats.is_connected:
            return known
        js = JetStream(self._nats)
        try:
            # INVARIANT: what another replica wrote is behind, too (test_the_lag_is_what_the_streams_have_and_the_index_has_not).
            asked = await asyncio.gather(js.state(jetstream_ledger.STREAM), js.state(refusal_stream.STREAM))
        except (ApiError, Unreachable):
            return known
        return max(known[0], asked[0]["last_seq"]), max(known[1], asked[1]["last_seq"])

    async def caught_up(self) -> None:
        """Wait until what was written before is in the index, so that nobody misses what they just did, at whichever replica."""
        ledger, refusals = await self.ends()
        try:
            await self.index.wait_for(ledger)
            await self.index.wait_for_refusals(refusals)
        except TimeoutError:
            raise refusal(
                Code.LEDGER_UNAVAILABLE, "the index is behind the ledger", rule="index.behind", ask="try again shortly",
                retry_after=1.0, cause=self.index.halted or "",
            ) from None  # fmt: skip

    async def evidence(self, tenant: str, txn: str, jwks: dict[str, Any]) -> dict[str, Any]:
        """The evidence of one txn, with ``jwks`` as the keys it claims. Refuses UNKNOWN_TARGET."""
        await self.caught_up()
        entries = await self.index.chain(tenant, txn)
        if not entries:
            raise refusal(Code.UNKNOWN_TARGET, f"no txn {txn}", rule="api.unknown-txn", ask="remit chains lists them")
        refusals = await self.index.refusals(tenant, txn)
        with contextlib.suppress(sqlite3.OperationalError):
            await self.index.checkpoint()
        proofs = await self.index.proofs.of(entries, refusals)
        if proofs is None:
            raise refusal(
                Code.LEDGER_UNAVAILABLE, "no checkpoint covers the chain yet", rule="index.unsealed",
                ask="try again shortly", retry_after=1.0,
            )  # fmt: skip
        return export(entries, refusals, jwks, proofs)

    async def checkpoints(self, since: int | None = None) -> dict[str, Any]:
        """The newest checkpoints of both logs; with ``since`` the proof that the ledger's begins with its first ``since`` records.

        Refuses MALFORMED where it does not have as many.
        """
        ledger = await self.index.proofs.sealed(jetstream_ledger.STREAM)
        refused = await self.index.proofs.sealed(refusal_stream.STREAM)
        told: dict[str, Any] = {
            "checkpoint": ledger and ledger.note,
            "cosignatures": list(ledger.cosignatures) if ledger else [],
            "refusals": refused and refused.note,
        }
        if since is None:
            return told
        try:
            steps = await self.index.proofs.consistent(jetstream_ledger.STREAM, since, ledger.size if ledger else 0)
        except ValueError as no:
            raise refusal(Code.MALFORMED, str(no), rule="checkpoint.since", ask="the size of a checkpoint") from None
        return {**told, "consistency": [base64.b64encode(step).decode() for step in steps]}
