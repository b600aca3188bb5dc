"""Sessions with a server for each of its users: many HTTP servers bind a session to whoever began it, and a process of one's own keeps
what a server remembers, and its credentials, from everybody else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

from remit_broker.core.backends import worth_hiding
from remit_broker.edges.attach.server_log import ServerLog
from remit_broker.edges.attach.session import ToolSession, open_session
from remit_broker.edges.attach.session_pool import Crowded, SessionPool
from remit_broker.edges.attach.source import HttpSource, ServerError, Source, StdioSource
from remit_broker.edges.attach.wire import Shown
from remit_schemas.errors import Code, Refusal, refusal

MOST: Final = 64
"""Sessions with an HTTP server at once."""
IDLE: Final = 300.0
"""Seconds without a call after which one ends."""


class UserSessions:
    """Those of one server, by whose they are. ``seconds`` is for one handshake; ``homes`` is the folder of contained users' homes."""

    def __init__(
        self, source: Source, log: ServerLog, seconds: float, homes: Path, on_change: Callable[[], None] = lambda: None
    ) -> None:
        self._source, self._log, self._seconds, self._homes = source, log, seconds, homes
        most, idle = (source.sharing.most, source.sharing.idle) if isinstance(source, StdioSource) else (MOST, IDLE)
        self._pool = SessionPool(most, idle, on_change)

    @property
    def apart(self) -> bool:
        """Whether each user, or task, has a process of its own."""
        return isinstance(self._source, StdioSource) and self._source.sharing.of != "server"

    def sessions(self) -> list[ToolSession]:
        """Those that are live."""
        return self._pool.sessions()

    async def close(self) -> None:
        """End all of them."""
        await self._pool.close()

    async def get(self, user: str, txn: str, shown: Shown) -> ToolSession:
        """The live session of a user, or of a task, in which the server has what it is ``shown``. Raises a refusal; nothing has
        happened then.

        INVARIANT: no call of one user goes through the session of another (test_each_user_has_a_session_of_their_own,
        test_each_user_has_a_process_of_their_own).
        """
        try:
            if isinstance(self._source, HttpSource):
                return await self._over_http(self._source, shown)
            return await self._in_a_process(self._source, user, txn, shown)
        except ServerError as error:
            raise _refused(str(error)) from None
        except Crowded:
            raise refusal(
                Code.TARGET_UNAVAILABLE, "as many processes of this server run as may, and each is in use", rule="attach.processes",
                ask="call again shortly; an operator can allow more: processes in servers.toml", retry_after=1.0,
            ) from None  # fmt: skip

    async def _over_http(self, source: HttpSource, shown: Shown) -> ToolSession:
        if shown.variables:
            raise _misplaced("a variable", "a header: leave out variable")
        theirs = dataclasses.replace(source, headers=shown.headers)
        return await self._pool.get(
            _mark(shown.headers), lambda: open_session(theirs, self._log, _nothing, self._seconds, as_user=True)
        )

    async def _in_a_process(self, source: StdioSource, user: str, txn: str, shown: Shown) -> ToolSession:
        if shown.headers:
            raise _misplaced("a header", "a variable of its environment: variable")
        if not self.apart:
            raise refusal(
                Code.TARGET_UNAVAILABLE, "one process for all users is shown no credentials of any of them", rule="credentials.process",
                ask='give each a process of their own: process = "user" in servers.toml',
            )  # fmt: skip
        whose = txn if source.sharing.of == "txn" else user
        theirs = dataclasses.replace(source, env={**source.env, **shown.variables})
        # What a task leaves in its home goes with it; a user finds it again.
        log = self._log.hiding(worth_hiding(dict(shown.variables)))
        home = self._home(user) if source.sharing.of == "user" and source.room is not None else None
        return await self._pool.get(
            _mark([whose, shown.variables]),
            lambda: open_session(theirs, log, _nothing, self._seconds, home=home, as_user=True),
        )

    def _home(self, user: str) -> Path:
        self._homes.mkdir(mode=0o700, exist_ok=True)
        return self._homes / hashlib.sha256(user.encode()).hexdigest()[:32]


def _mark(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _nothing() -> None:
    return None


def _misplaced(what: str, instead: str) -> Refusal:
    return refusal(
        Code.TARGET_UNAVAILABLE, f"this server cannot be shown its credential as {what}", rule="credentials.http",
        ask=f"an operator can have it shown as {instead}, in its table under [backends]",
    )  # fmt: skip


def _refused(why: str) -> Refusal:
    if "401" in why or "403" in why:
        return refusal(
            Code.TARGET_UNAVAILABLE, "the server does not accept the credential of this user", rule="credentials.refused",
            ask="reconnect needed: set another secret (remit secrets set), or connect again (remit secrets connect)",
        )  # fmt: skip
    return refusal(
        Code.TARGET_UNAVAILABLE, f"the server cannot be reached for this user: {why}"[:300], rule="attach.unavailable",
        ask="call again shortly",
    )  # fmt: skip
