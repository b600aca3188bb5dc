"""The worker of one attached MCP server: its place on the bus on one side, the server's life on the other."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from remit_broker.edges.attach.credentials import Credentials, CredentialsError, read_credentials
from remit_broker.edges.attach.definitions import offer, offered_by
from remit_broker.edges.attach.link import Link
from remit_broker.edges.attach.serve import Calls, Server, Trust
from remit_broker.edges.attach.server_log import ServerLog
from remit_broker.edges.attach.session import ToolSession, first_cause, open_session
from remit_broker.edges.attach.source import HttpSource, ServerError, Source, SourceError, StdioSource
from remit_broker.edges.attach.timing import Timing
from remit_broker.edges.attach.user_sessions import UserSessions
from remit_broker.edges.attach.wire import NOTHING_SHOWN, BusError, Shown
from remit_schemas.control import goes_on, parse_control
from remit_schemas.errors import Code, Refusal
from remit_schemas.keys import KeySet

State = Literal["starting", "running", "failed", "stopped"]

_SETTLE: Final = 1.0
"""Seconds between two registrations: several changes of a list in between become one."""
_TRY_AGAIN: Final = (0.5, 15.0)
"""First and last pause, in seconds, between registrations that the broker did not answer."""


_MOMENT: Final = 0.2
"""Seconds in which several changes of resources are told together."""
_UPDATES: Final = 100
_URI: Final = 4096


@dataclass(frozen=True)
class Report:
    """How the worker is; ``reason`` is one line. ``pid`` is that of a server that was started here."""

    state: State
    reason: str = ""
    pid: int | None = None
    tools: int = 0
    left_out: tuple[str, ...] = ()
    server: str = ""
    others: tuple[int, ...] = ()
    """The processes of users or tasks that have one of their own."""

    def as_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))


OnReport = Callable[[Report], None]


class AttachWorker:
    """Serves one MCP server as the principal ``name``. Make one, then :meth:`run` it; it is used once."""

    def __init__(
        self,
        name: str,
        source: Source,
        credentials: Credentials,
        bus: str | None = None,
        *,
        log: Path | None = None,
        timing: Timing = Timing(),  # noqa: B008 - frozen
        on_report: OnReport = lambda _: None,
    ) -> None:
        """``bus`` is the NATS URL where it is not that of ``credentials``. Raises :class:`CredentialsError` for another's."""
        if credentials.agent != name:
            raise CredentialsError(f"{credentials.path} is for {credentials.agent}, not for {name}")
        self.name = name
        self.report = Report("starting")
        self._source = source
        self._credentials = credentials
        self._timing = timing
        self._on_report = on_report
        self._log = ServerLog(log)
        self._home = credentials.path.with_suffix(".home").absolute()
        self._changed = asyncio.Event()
        self._probe = asyncio.Event()
        self._stop = asyncio.Event()
        self._updates: dict[str, None] = {}
        self._going_on: set[asyncio.Task[None]] = set()
        self._ran = False
        self._serving = False
        self._link = Link(
            credentials, bus or credentials.bus, on_dispatch=self._on_dispatch, on_control=self._on_control,
            on_back=self._changed.set, on_error=lambda error: self._note("bus", error),
        )  # fmt: skip
        trust = Trust(name, credentials.issuer, credentials.keys, self._fresh_keys)
        self._calls = Calls(trust, self._link.connection, self._link.publish)
        self._calls.on_timeout = self._probe.set
        homes = credentials.path.with_suffix(".homes").absolute()
        self._users = UserSessions(source, self._log, timing.start, homes, self._counted)
        self._calls.session_of, self._calls.apart = self._session_of, self._users.apart
        self._calls.on_fault = lambda error: self._note("fault", error)

    @property
    def connection(self) -> str:
        """The random name of the connection, as in ``started`` frames."""
        return self._link.connection

    def stop(self) -> None:
        """Ask :meth:`run` to end."""
        self._stop.set()

    async def run(self) -> None:
        """Serve until :meth:`stop`.

        Raises :class:`SourceError`, :class:`ServerError` (the server never started), :class:`BusError
        <remit_broker.edges.attach.wire.BusError>` (the bus was never reached), or the broker's refusal of the registration.
        Later failures of either side are waited out.
        """
        try:
            await self._live()
        except BaseException as error:
            self._say(Report("failed", _line(error)))
            raise
        finally:
            await self._leave()
        self._say(Report("stopped"))

    async def _live(self) -> None:
        pause = self._timing.first_restart
        while not self._stop.is_set():
            began = asyncio.get_running_loop().time()
            failure = await self._session_unless_stopped()
            if failure is not None and (not self._ran or isinstance(failure, Refusal)):
                raise failure
            if asyncio.get_running_loop().time() - began > self._timing.steady:
                pause = self._timing.first_restart
            await self._pause(_line(failure) if failure else self._calls.absence, pause)
            pause = min(pause * 2, self._timing.last_restart)

    async def _session_unless_stopped(self) -> Exception | None:
        """One session. A session that is being served ends itself when we are stopped; one that is only starting is given up."""
        session = asyncio.create_task(self._one_session())
        stopped = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({session, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not self._serving:
                session.cancel()
            await asyncio.wait({session})
            return None if session.cancelled() else session.result()
        finally:
            session.cancel()
            stopped.cancel()
            await asyncio.gather(session, stopped, return_exceptions=True)

    async def _one_session(self) -> Exception | None:
        """The life of one session; why it failed, where it did not just end."""
        failure: Exception | None = None
        try:
            async with open_session(
                await self._listed(), self._log, self._changed.set, self._timing.start, self._updated, self._home
            ) as session:
                self._serving = True
                failure = await self._serve(session)
                self._serving = False
                self._calls.absence = session.reason
        except (ServerError, SourceError) as error:
            failure = error
        except ExceptionGroup as group:
            # The library's transports end in groups, also of one.
            failure = failure or ServerError(_line(first_cause(group)))
        return failure

    async def _listed(self) -> Source:
        """The source, with what the server wants of whoever lists its tools: what was set for its service account, if anything."""
        if not isinstance(self._source, HttpSource):
            return self._source
        try:
            await self._link.up()
            headers = (await self._link.credentials("")).headers
        except (Refusal, BusError):
            # Whatever is the matter is told when the server is registered.
            return self._source
        return replace(self._source, headers=headers)

    async def _pause(self, reason: str, seconds: float) -> None:
        """Say that the server is away, and wait before it is started again."""
        if self._stop.is_set():
            return
        self._calls.absence = f"{reason or 'it ended'}; it is started again in {seconds:g} s"
        self._calls.back_in = seconds
        self._say(Report("starting", self._calls.absence))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        self._calls.absence = "it is being started again"

    async def _serve(self, session: ToolSession) -> Exception | None:
        """Serve one session until it ends, the server hangs, or the worker is stopped. Returns a failure instead of raising it:
        raised through the library's task groups it would come out as a group.
        """
        self._changed.set()
        watching = [
            asyncio.create_task(job)
            for job in (
                self._keep_registered(session),
                self._keep_alive(session),
                session.ended.wait(),
                self._stop.wait(),
            )
        ]
        try:
            done, _ = await asyncio.wait(watching, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # From here on calls are refused with effect none; those in flight end with the session.
            if not self._stop.is_set():
                self._calls.server, self._calls.absence, self._calls.back_in = (
                    None,
                    session.reason,
                    self._timing.first_restart,
                )
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
        if self._stop.is_set():
            await self._link.hush()
            await self._calls.finish(self._timing.finish)
        return next((error for task in done if isinstance(error := task.exception(), Exception)), None)

    async def _keep_registered(self, session: ToolSession) -> None:
        """List and register the tools, now and whenever they changed."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                async with asyncio.timeout(self._timing.listing):
                    found = offer(await offered_by(session), session.identity)
            except TimeoutError:
                raise ServerError("it did not list its tools in time") from None
            except Exception as error:
                raise ServerError(f"its list of tools cannot be used: {session.reason or _line(error)}") from None
            await self._link.up()
            self._calls.names, self._calls.tasks, self._calls.server = found.names, found.tasks, session
            refused = await self._registered(found.args)
            self._ran = True
            server = f"{session.identity.name} {session.identity.version}".strip()
            count, left_out = len(found.args["tools"]) - len(refused), (*found.left_out, *refused)
            self._say(Report("running", "", session.pid, count, left_out, server, self._pids()))
            await asyncio.sleep(_SETTLE)

    async def _registered(self, args: dict[str, Any]) -> tuple[str, ...]:
        """Register, patiently while there is no broker; what the broker says of tools that it did not take. Raises what it refuses."""
        pause, longest = _TRY_AGAIN
        while True:
            try:
                said = await self._link.register(args)
                kind = said.get("credentials", "grant")
                self._calls.traced = said.get("trace") is True
                # INVARIANT: a server that is to get a user's own credential does not get another one
                # (test_each_user_calls_with_their_own_secret): the grant alone needs no asking.
                self._calls.credentials = None if kind == "grant" else self._link.credentials
                return tuple(map(str, said.get("refused", ())))
            except Refusal as refused:
                if refused.body.code not in (Code.TARGET_UNAVAILABLE, Code.LEDGER_UNAVAILABLE, Code.RATE_LIMITED):
                    raise
                self._say(Report("starting", refused.body.message))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    # A reconnection is the moment at which a broker may be back.
                    await self._changed.wait()
            pause = min(pause * 2, longest)

    async def _keep_alive(self, session: ToolSession) -> None:
        """After a call that was not answered in time, ask whether the server lives; one that does not is started again."""
        while True:
            await self._probe.wait()
            self._probe.clear()
            # A server that works on another call may be too busy to answer: that call's own deadline will ask again.
            for theirs in self._users.sessions():
                if not theirs.in_flight and not await theirs.lives(self._timing.probe) and not theirs.in_flight:
                    theirs.end("it hung")
            if session.in_flight or await session.lives(self._timing.probe) or session.in_flight:
                continue
            session.end("it hung")
            return

    async def _on_dispatch(self, subject: str, data: bytes) -> None:
        await self._calls.take(subject, data)

    def _on_control(self, txn: str, hop: str, data: bytes) -> None:
        # Our own inbox: only the broker writes there.
        if goes_on(data):
            self._going_on.add(task := asyncio.create_task(self._calls.go_on(txn, hop, data)))
            task.add_done_callback(self._going_on.discard)
            return
        self._calls.hear(txn, hop, parse_control(data))

    def _updated(self, uri: str) -> None:
        """A resource changed: told within a moment, together with what else does in it."""
        if not self._updates:
            self._going_on.add(task := asyncio.create_task(self._tell()))
            task.add_done_callback(self._going_on.discard)
        if len(self._updates) < _UPDATES and len(uri) <= _URI:
            self._updates[uri] = None

    async def _tell(self) -> None:
        await asyncio.sleep(_MOMENT)
        uris, self._updates = list(self._updates), {}
        await self._link.changed(uris)

    async def _session_of(self, user: str, txn: str, shown: Shown) -> Server:
        one = self._calls.server
        if (
            shown == NOTHING_SHOWN
            and isinstance(self._source, StdioSource)
            and not self._users.apart
            and one is not None
        ):
            return one
        return await self._users.get(user, txn, shown)

    def _pids(self) -> tuple[int, ...]:
        return tuple(pid for session in self._users.sessions() if (pid := session.pid) is not None)

    def _counted(self) -> None:
        """A process of somebody's own came or went."""
        if self.report.state == "running":
            self._say(replace(self.report, others=self._pids()))

    def _note(self, what: str, error: Exception) -> None:
        self._log.write(f"{what}: {type(error).__name__}: {_line(error)}\n".encode())

    async def _leave(self) -> None:
        await self._users.close()
        await self._calls.finish(0)
        await self._link.down()

    def _fresh_keys(self) -> KeySet:
        try:
            return read_credentials(self._credentials.path).keys
        except CredentialsError:
            return self._credentials.keys

    def _say(self, report: Report) -> None:
        if report != self.report:
            self.report = report
            self._on_report(report)


def _line(error: BaseException) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    return "".join(c if c.isprintable() else " " for c in said[:500])
