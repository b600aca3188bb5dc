"""Checkpoints leave the house: to witnesses, who sign what is consistent with all they saw before, and into a file that only grows.

A witness speaks C2SP tlog-witness: it is sent the newest checkpoint with the proof that it begins with the one it saw last,
and answers with its cosignature. What it signed is kept beside the checkpoint and goes into evidence.
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import httpx

from remit_broker.adapters import jetstream_ledger
from remit_broker.adapters.index_tree import Sealed
from remit_broker.adapters.outbound import Answer, Forbidden, Outbound
from remit_broker.adapters.sqlite_index import SqliteIndex
from remit_broker.core.notes import Witness, cosigned, parse, parse_line, parse_vkey
from remit_broker.ports import Observer

SECONDS: Final = 10.0
"""How often a new checkpoint is sent out, and one that was not taken is sent again."""


class Witnesses:
    """Sends out the newest checkpoint of the ledger. ``wanted`` are verifier keys by URL; ``file`` is where each is appended."""

    def __init__(
        self, wanted: Mapping[str, str], file: Path | None, outbound: Outbound, index: SqliteIndex, observer: Observer
    ) -> None:
        """Raises ``ValueError`` for a key that is none."""
        self._wanted = {url: parse_vkey(key) for url, key in wanted.items()}
        self._file, self._outbound, self._index, self._observer = file, outbound, index, observer
        self._seen = dict.fromkeys(wanted, 0)
        """How much of the log each witness is known to have seen."""
        self._written = 0
        self.signed = self.failed = 0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.once()
            except Exception as error:  # whatever one round ends with, the next one begins
                self._observer.fault("witness", error)
            await asyncio.sleep(SECONDS)

    async def once(self) -> None:
        """Send out the newest checkpoint to whoever has not had it."""
        sealed = await self._index.proofs.newest(jetstream_ledger.STREAM)
        if sealed is None:
            return
        if self._file is not None and sealed.size > self._written:
            await asyncio.to_thread(_append, self._file, sealed.note)
            self._written = sealed.size
        missing = [
            url
            for url, witness in self._wanted.items()
            if not any(cosigned(_text(sealed), parse_line(line), [witness]) for line in sealed.cosignatures)
        ]
        # Side by side: one that hangs keeps no other waiting.
        await asyncio.gather(*(self._ask(url, self._wanted[url], sealed) for url in missing))

    async def _ask(self, url: str, witness: Witness, sealed: Sealed) -> None:
        try:
            answer = await self._sent(url, sealed)
            if answer.status == 409:
                # It has seen another size than this process remembers: it says which.
                self._seen[url] = _size(answer.body)
                answer = await self._sent(url, sealed)
            why = await self._taken(url, witness, sealed, answer)
        except (Forbidden, OSError, TimeoutError, httpx.HTTPError, ValueError) as error:
            why = f"{type(error).__name__}: {error}"
        if why:
            self.failed += 1
            self._observer.fault(
                "witness", RuntimeError(f"the witness {witness.name} did not sign {sealed.size}: {why}")
            )

    async def _sent(self, url: str, sealed: Sealed) -> Answer:
        old = self._seen[url]
        if old > sealed.size:
            # INVARIANT: a log that lost what a witness saw is not passed off as the same
            # (test_a_log_that_is_behind_its_witness_is_said).
            raise ValueError(f"it has seen {old} records, the log has {sealed.size}: its end is missing")
        steps = await self._index.proofs.consistent(sealed.tree, old, sealed.size)
        lines = [f"old {old}", *(base64.b64encode(step).decode() for step in steps), "", sealed.note]
        return await self._outbound.send("POST", f"{url.rstrip('/')}/add-checkpoint", {}, "\n".join(lines).encode())

    async def _taken(self, url: str, witness: Witness, sealed: Sealed, answer: Answer) -> str:
        """Keep what the witness signed; why there is nothing, or nothing."""
        if answer.status != 200:
            return f"it answered {answer.status}"
        for line in answer.body.decode("utf-8", "replace").splitlines():
            # INVARIANT: only what its key signed counts (test_a_cosignature_by_somebody_else_is_none).
            if cosigned(_text(sealed), parse_line(line), [witness]) is not None:
                await self._index.cosigned(sealed.size, witness.name, line)
                self._seen[url] = sealed.size
                self.signed += 1
                return ""
        return "its answer is not signed by its key"


def _text(sealed: Sealed) -> str:
    return parse(sealed.note).text


def _size(body: bytes) -> int:
    text = body.decode("ascii", "replace").strip()
    if not text.isdigit() or len(text) > 18:
        raise ValueError("it does not say how much it has seen")
    return int(text)


def _append(path: Path, note: str) -> None:
    """One note after the other, an empty line between: for a disk or a mount on which nothing is written over."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, f"{note}\n".encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
