"""The webhook: whoever is to approve calls is told that one waits. At least once, signed, with patience, and without arguments."""

from __future__ import annotations

import asyncio
from typing import Final
from urllib.parse import urlsplit

import httpx
import msgspec

from remit_broker.adapters.outbound import Forbidden, Outbound
from remit_broker.adapters.sqlite_index import SqliteIndex
from remit_broker.core.listing import Untold
from remit_broker.core.times import rfc3339
from remit_broker.ports import Ports
from remit_schemas.canonical import digest

LOOK: Final = 0.5
"""Seconds between two looks for requests that nobody was told of."""
FIRST, LONGEST = 1.0, 300.0
"""The pause after a first attempt that failed; each is twice the one before, up to the longest."""


class Notices:
    """Tells one URL of each request for an approval, until it answers with 2xx or the request has ended."""

    def __init__(self, url: str, outbound: Outbound, index: SqliteIndex, ports: Ports) -> None:
        self._url, self._outbound, self._index, self._ports = url, outbound, index, ports
        # INVARIANT: whoever may post to the webhook by its path alone is not told to the log (test_the_log_does_not_know_the_path).
        self._host = urlsplit(url).hostname or "the webhook"
        self._again: dict[tuple[str, str, str], tuple[float, float]] = {}
        self.sent = self.failed = 0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(LOOK)
            try:
                await self._once()
            except Exception as error:  # whatever one round ends with, the next one begins
                self._ports.observer.fault("webhook", error)

    async def _once(self) -> None:
        now, mono = self._ports.clock.now(), self._ports.clock.monotonic()
        waiting = await self._index.untold(int(now))
        self._again = {key: at for key, at in self._again.items() if any(key == one.key for one in waiting)}
        due = [one for one in waiting if self._again.get(one.key, (0.0, 0.0))[0] <= mono]
        # Side by side: one that hangs keeps no other waiting.
        await asyncio.gather(*(self._tell(one) for one in due))

    async def _tell(self, one: Untold) -> None:
        why: BaseException | str
        try:
            status = await self._outbound.post(self._url, *self._message(one))
            why = f"it answered {status}"
            if 200 <= status < 300:
                await self._index.told(one.key)
                self._again.pop(one.key, None)
                self.sent += 1
                return
        except (Forbidden, OSError, TimeoutError, httpx.HTTPError) as error:
            why = error
        except ValueError as error:
            # Of the URL: its text may hold a secret.
            why = type(error).__name__
        pause = min(self._again.get(one.key, (0.0, FIRST / 2))[1] * 2, LONGEST)
        self._again[one.key] = (self._ports.clock.monotonic() + pause, pause)
        self.failed += 1
        self._ports.observer.fault("webhook", RuntimeError(f"{self._host} was not told of {one.record['id']}: {why}"))

    def _message(self, one: Untold) -> tuple[bytes, dict[str, str]]:
        """The body, and a header that signs it: a JWS whose payload has the digest of the body, the URL and the time."""
        record = one.record
        body = msgspec.json.encode(
            {
                "type": record["kind"],
                **{name: record[name] for name in _TOLD},
                "expires": rfc3339(record["exp"]),
                "findings": sorted({finding["kind"] for finding in record["findings"]}),
                "approval_url": f"{self._ports.limits.approval_url}{record['id']}",
            }
        )
        signed = self._ports.mint.notice(
            {"aud": self._url, "iat": int(self._ports.clock.now()), "sha256": digest(body)}
        )
        return body, {
            "Content-Type": "application/json", "User-Agent": "remit", "Remit-Event": record["id"], "Remit-Signature": signed,
        }  # fmt: skip


_TOLD: Final = (
    "id", "tenant", "txn", "hop", "at", "user", "caller", "chain", "action", "resource", "needs", "reason", "labels", "redacted",
    "args_digest", "args_size",
)  # fmt: skip
"""What is said of a request: what its record says, and no arguments."""
