"""A client over standard input and output, carried to a running broker's ``/mcp``: lines one way, streamable HTTP the other."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import httpx

SESSION: Final = "mcp-session-id"
VERSION: Final = "mcp-protocol-version"
ACCEPT: Final = "application/json, text/event-stream"
UNREACHABLE: Final = -32018
"""As the table of errors has TARGET_UNAVAILABLE."""
CLAIM: Final = "dev.remit/session"
CARRIED: Final = "remit-carried"
_NAMED: Final = {"resources/read": "uri", "tasks/get": "taskId", "tasks/update": "taskId", "tasks/cancel": "taskId"}
"""Which of the params a header repeats, where it is not the name."""
"""The header by which the broker knows that no client repeated arguments in headers, since its own has none."""
_REVISION: Final = "io.modelcontextprotocol/protocolVersion"
_PLAIN: Final = re.compile(r"(?!\s|=\?base64\?)[\x20-\x7e]*(?<!\s)")
AGAIN: Final = (0.2, 5.0)
"""First and last pause, in seconds, between attempts to listen again."""


class Where(NamedTuple):
    """Where the broker is at the moment, and what proves who asks."""

    url: str
    token: str


Find = Callable[[], Where]
Write = Callable[[bytes], Awaitable[None]]


class Bridge:
    """One client. ``find`` says where the broker is, and raises where none runs; the text is for the client's user."""

    def __init__(self, find: Find, write: Write) -> None:
        self._find, self._write = find, write
        self._at: Where | None = None
        self._http = httpx.AsyncClient(timeout=httpx.Timeout(10.0, read=None), trust_env=False)
        self._session = self._version = ""
        self._hello: dict[str, Any] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._listening: asyncio.Task[None] | None = None
        self._anew = asyncio.Lock()
        self._alone: dict[Any, asyncio.Task[None]] = {}
        self._claim = secrets.token_hex(16)
        """What says that all requests without a session that come through here belong together."""

    async def run(self, lines: AsyncIterator[bytes]) -> None:
        """Until the client closes its end. What it asked before is still answered."""
        try:
            async for line in lines:
                await self._take(line)
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=5)
        finally:
            await self._leave()

    async def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            await self._say(
                {"jsonrpc": "2.0", "id": None, "error": {"code": -32700, "message": "not one message a line"}}
            )
        elif message.get("method") == "initialize":
            self._hello = message
            await self._carry(message)
        elif "method" in message and "id" in message:
            task = self._spawn(self._carry(message))
            if is_alone(message):
                self._alone[message["id"]] = task
                task.add_done_callback(lambda _: self._alone.pop(message["id"], None))
        elif (alone := self._cancelled(message)) is not None:
            # Without a session there is nothing to cancel it in: hanging up is what says so.
            alone.cancel()
        else:
            # In order: what is said must not overtake what was said before it.
            await self._carry(message)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _cancelled(self, message: dict[str, Any]) -> asyncio.Task[None] | None:
        params = message.get("params")
        if message.get("method") != "notifications/cancelled" or not isinstance(params, dict):
            return None
        wanted = params.get("requestId")
        return self._alone.get(wanted) if isinstance(wanted, str | int) else None

    async def _carry(self, message: dict[str, Any]) -> None:
        """Send a message, and write what comes back. Where it cannot be sent, the client hears why."""
        try:
            if is_alone(message):
                await self._post(claiming(message, self._claim), "")
                return
            session = self._session
            if await self._post(message, session):
                return
            # The session is gone, as after a restart of the broker: the client need not know.
            await self._begin_anew(session)
            if not await self._post(message, self._session):
                raise Broken("the broker has ended this session; start the client again")
        except Broken as failed:
            await self._fail(message, str(failed))
        except httpx.HTTPError as error:
            await self._fail(message, f"the broker does not answer: {type(error).__name__}")
        except Exception as gone:
            await self._fail(message, str(gone))

    async def _post(self, message: dict[str, Any], session: str) -> bool:
        """Whether there was such a session."""
        hello = message.get("method") == "initialize"
        async with self._sent(message, "" if hello else session) as response:
            if response.status_code == 404 and session and not hello:
                return False
            if response.status_code == 202:
                return True
            kind = response.headers.get("content-type", "").partition(";")[0]
            if response.status_code == 200 and kind == "text/event-stream":
                async for said in events(response.aiter_lines()):
                    await self._say_raw(said)
                return True
            body = await response.aread()
            if response.status_code != 200 and not (is_alone(message) and _answers(message, body)):
                raise Broken(_why(response.status_code, body))
            if hello:
                self._welcomed(response, json.loads(body))
            await self._say_raw(body)
        return True

    @asynccontextmanager
    async def _sent(self, message: dict[str, Any], session: str) -> AsyncIterator[httpx.Response]:
        """The answer to a message. A broker that was started again may be elsewhere, and have another token."""
        try:
            async with self._http.stream(
                "POST", self._where().url, headers=self._headers(session, message), json=message
            ) as response:
                if response.status_code != 401:
                    yield response
                    return
        except httpx.ConnectError:
            pass  # nothing was sent
        self._at = None
        async with self._http.stream(
            "POST", self._where().url, headers=self._headers(session, message), json=message
        ) as response:
            yield response

    def _where(self) -> Where:
        if self._at is None:
            self._at = self._find()
        return self._at

    def _headers(self, session: str, message: dict[str, Any] | None = None) -> dict[str, str]:
        found = {"Authorization": f"Bearer {self._where().token}", "Accept": ACCEPT}
        if message is not None and is_alone(message):
            return found | repeated(message)
        if session:
            found |= {SESSION: session, VERSION: self._version}
        return found

    def _welcomed(self, response: httpx.Response, answer: dict[str, Any]) -> None:
        self._session = response.headers.get(SESSION, "")
        self._version = str(answer.get("result", {}).get("protocolVersion", ""))
        if self._session and self._listening is None:
            self._listening = asyncio.get_running_loop().create_task(self._listen())

    async def _begin_anew(self, gone: str) -> None:
        async with self._anew:
            if self._session != gone or self._hello is None:
                return
            async with self._sent(self._hello, "") as response:
                body = await response.aread()
                if response.status_code != 200:
                    raise Broken(_why(response.status_code, body))
                self._welcomed(response, json.loads(body))
            done = {"jsonrpc": "2.0", "method": "notifications/initialized"}
            await self._http.post(self._where().url, headers=self._headers(self._session), json=done)

    async def _listen(self) -> None:
        """What the broker says of its own accord, for as long as the client is there."""
        pause, longest = AGAIN
        while True:
            session = self._session
            with contextlib.suppress(Exception):
                headers = {**self._headers(session), "Accept": "text/event-stream"}
                async with self._http.stream("GET", self._where().url, headers=headers) as response:
                    if response.status_code == 200:
                        pause = AGAIN[0]
                        async for said in events(response.aiter_lines()):
                            await self._say_raw(said)
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)

    async def _leave(self) -> None:
        for task in (*self._tasks, *([self._listening] if self._listening else [])):
            task.cancel()
        if self._session:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(2):
                    await self._http.delete(self._where().url, headers=self._headers(self._session))
        await self._http.aclose()

    async def _fail(self, message: dict[str, Any], why: str) -> None:
        if "method" in message and message.get("id") is not None:
            error = {"code": UNREACHABLE, "message": why}
            await self._say({"jsonrpc": "2.0", "id": message["id"], "error": error})

    async def _say(self, message: dict[str, Any]) -> None:
        await self._say_raw(json.dumps(message).encode())

    async def _say_raw(self, message: bytes) -> None:
        # One message a line: JSON has no line ends of its own but for those between its tokens.
        await self._write(message.replace(b"\n", b" ") + b"\n")


def is_alone(message: dict[str, Any]) -> bool:
    """Whether a request stands for itself, as those of the generation 2026-07-28 do."""
    params = message.get("params")
    meta = params.get("_meta") if isinstance(params, dict) else None
    return isinstance(meta, dict) and _REVISION in meta and message.get("method") != "initialize" and "id" in message


def claiming(message: dict[str, Any], claim: str) -> dict[str, Any]:
    """The request, as one of all those that come from here, unless its client says otherwise."""
    params = message["params"]
    return {**message, "params": {**params, "_meta": {CLAIM: claim, **params["_meta"]}}}


def repeated(message: dict[str, Any]) -> dict[str, str]:
    """The headers in which a request over HTTP repeats what is in it (MCP 2026-07-28, Streamable HTTP)."""
    params = message["params"]
    found = {VERSION: params["_meta"][_REVISION], "mcp-method": message["method"], CARRIED: "stdio"}
    found["mcp-name"] = params.get(_NAMED.get(message["method"], "name"))
    return {
        name: value if _PLAIN.fullmatch(value) else _wrapped(value)
        for name, value in found.items()
        if isinstance(value, str)
    }


def _wrapped(value: str) -> str:
    return f"=?base64?{base64.b64encode(value.encode('utf-8', 'surrogatepass')).decode()}?="


def _answers(message: dict[str, Any], body: bytes) -> bool:
    try:
        said = json.loads(body)
    except ValueError:
        return False
    return isinstance(said, dict) and said.get("jsonrpc") == "2.0" and said.get("id") == message.get("id")


class Broken(Exception):  # noqa: N818 - an answer
    """The text is for the client's user."""


def _why(status: int, body: bytes) -> str:
    try:
        error = json.loads(body)["error"]
        asked = f"; {error['ask']}" if error.get("ask") else ""
        return f"{error.get('code', status)}: {error['message']}{asked}"
    except (ValueError, KeyError, TypeError):
        return f"the broker answered with HTTP status {status}"


async def events(lines: AsyncIterator[str]) -> AsyncIterator[bytes]:
    """The data of each event of a stream (WHATWG HTML, 9.2.6)."""
    data: list[str] = []
    async for line in lines:
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            # An event may be nothing but an id.
            if any(data):
                yield "\n".join(data).encode()
            data = []
