"""The worker's place on the bus: one connection with a name of its own, asking the broker and publishing frames."""

from __future__ import annotations

import asyncio
import secrets
import string
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from remit_broker.edges.attach.credentials import Credentials
from remit_schemas import subjects
from remit_schemas.envelope import FINAL, MAX_ENVELOPE, Error, Frame, Request, Result, encode, parse_frame
from remit_schemas.errors import Code, Refusal, refusal
from remit_schemas.pongs import Hearing

ATTACH: Final = ("remit", "attach", "put")
CHANGED: Final = ("remit", "attach", "changed")
_NAME: Final = string.ascii_letters + string.digits


class Connection(Hearing, Client):
    """The library's client, which goes on hearing after a flush that was given up."""


class Shown(NamedTuple):
    """What a server is shown of the user it is called for: headers of its requests, or variables of a process of the user's own."""

    headers: Mapping[str, str]
    variables: Mapping[str, str]


NOTHING_SHOWN: Final = Shown({}, {})


class BusError(Exception):
    """The bus cannot be reached or does not let us in. The text says which, on one line."""


def connection_name() -> str:
    """A new random name of a connection: it is the only thing that tells its inbox from another of the same principal."""
    return "".join(secrets.choice(_NAME) for _ in range(22))


async def connect(
    credentials: Credentials, connection: str, *, bus: str, seconds: float, on_reconnect: Callable[[], Awaitable[None]],
    on_error: Callable[[Exception], Awaitable[None]], on_closed: Callable[[], Awaitable[None]],
) -> Client:  # fmt: skip
    """Connect, and stay connected until closed. Raises :class:`BusError` where the first connection fails, or UNAUTHENTICATED.

    A refusal by the bus is tried again until ``seconds`` are over: a broker that is just starting refuses everybody.
    """
    last: dict[str, Exception] = {}

    async def noted(error: Exception) -> None:
        # A refusal stays noted: the reset of the connection that follows it says less.
        if not _is_refusal(last.get("error")):
            last["error"] = error
        await on_error(error)

    client = Connection()
    try:
        async with asyncio.timeout(seconds):
            await client.connect(
                bus.split(","),
                name=connection,
                inbox_prefix=subjects.inbox_prefix(credentials.agent, connection).encode(),
                nkeys_seed_str=credentials.nkey_seed,
                connect_timeout=max(1, int(seconds)),
                allow_reconnect=True,
                max_reconnect_attempts=-1,
                reconnect_time_wait=1,
                reconnected_cb=on_reconnect,
                closed_cb=on_closed,
                error_cb=noted,
                # A frame that waited out a disconnection may come late; the broker drops what its hop no longer waits for.
                pending_size=8 * MAX_ENVELOPE,
            )
    except (TimeoutError, OSError, nats.errors.Error) as error:
        await client.close()
        why = last.get("error", error)
        if _is_refusal(why):
            raise refusal(
                Code.UNAUTHENTICATED, "the bus does not accept these credentials", rule="attach.credentials",
                ask=f"register {credentials.agent} again and use its new credentials file",
            ) from None  # fmt: skip
        raise BusError(f"{bus}: {str(why) or type(why).__name__}") from None
    return client


def _is_refusal(error: Exception | None) -> bool:
    return "authorization violation" in str(error).lower()


async def register(client: Client, name: str, args: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Tell the broker what ``name`` serves; its answer. Raises the broker's refusal, or TARGET_UNAVAILABLE where it does not answer."""
    deadline = int((time.time() + seconds) * 1000)
    data = encode(Request(args=args, deadline=deadline))
    if len(data) > MAX_ENVELOPE:
        raise refusal(
            Code.TOO_LARGE, f"the definitions of the tools have {len(data)} bytes, at most {MAX_ENVELOPE} can be registered",
            rule="attach.size", ask="attach a server with fewer tools, or with shorter descriptions and schemas",
        )  # fmt: skip
    answer = await _ask(client, subjects.request(name, subjects.NEW, *ATTACH), data, seconds)
    if isinstance(answer, Error):
        raise Refusal(answer.error)
    return _said(answer)


async def credentials(client: Client, name: str, grant: str, seconds: float) -> Shown:
    """With what the server is called for the user of ``grant``. Raises the broker's refusal, or TARGET_UNAVAILABLE."""
    data = encode(Request(grant=grant, deadline=int((time.time() + seconds) * 1000)))
    answer = await _ask(client, subjects.request(name, subjects.NEW, "remit", "credentials", "get"), data, seconds)
    if isinstance(answer, Error):
        raise Refusal(answer.error)
    said = _said(answer)
    found = Shown(said.get("headers", {}), said.get("variables", {}))
    if not all(
        isinstance(one, dict) and all(isinstance(text, str) for pair in one.items() for text in pair) for one in found
    ):
        raise refusal(
            Code.INTERNAL, "the broker's answer has no headers", rule="attach.answer", ask="check its version"
        )
    return found


def _said(answer: Frame) -> dict[str, Any]:
    if not isinstance(answer, Result) or not isinstance(answer.value, dict):
        raise refusal(Code.INTERNAL, "the broker asked for an input", rule="attach.answer", ask="check its version")
    return answer.value


async def tell_changed(client: Client, name: str, uris: list[str]) -> None:
    """Tell the broker that resources changed which somebody asked about. Nobody waits for its answer."""
    data = encode(Request(args={"uris": uris}, deadline=int((time.time() + 10) * 1000)))
    await client.publish(subjects.request(name, subjects.NEW, *CHANGED), data, reply=client.new_inbox())


async def _ask(client: Client, subject: str, data: bytes, seconds: float) -> Frame:
    inbox = client.new_inbox()
    answers = await client.subscribe(inbox)
    try:
        async with asyncio.timeout(seconds):
            await client.publish(subject, data, reply=inbox)
            while True:
                frame = _frame(await answers.next_msg(timeout=None))
                if isinstance(frame, FINAL):
                    return frame
    except (TimeoutError, nats.errors.Error) as error:
        raise _no_broker(str(error) or "it did not answer in time") from None
    finally:
        if not client.is_closed:
            await answers.unsubscribe()


def _frame(message: Msg) -> Frame:
    if message.headers and message.headers.get("Status") == "503":
        raise _no_broker("nobody listens")
    return parse_frame(message.data)


def _no_broker(why: str) -> Refusal:
    return refusal(
        Code.TARGET_UNAVAILABLE, f"the broker cannot be reached: {why}", rule="attach.broker", ask="start the broker"
    )
