"""The questions that every server is asked: who it is, what it offers, all pages of it, twice, and something that does not exist."""

from __future__ import annotations

from typing import Any, Final, Protocol

from remit_broker.core.scan.surface import Talk
from remit_broker.edges.scan.inbox import Broken, Refused
from remit_schemas.canonical import canonical, digest

HANDSHAKE: Final = "2025-11-25"
KNOWN: Final = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28")
MODERN: Final = "2026-07-28"
CLIENT: Final = {"name": "remit-scan", "version": "1"}
META: Final = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientInfo": CLIENT,
    "io.modelcontextprotocol/clientCapabilities": {},
}
MAX_PAGES: Final = 200
MAX_LISTED: Final = 5_000
"""Tools, resources or prompts that are looked at."""
ANSWER: Final = 10.0
"""Seconds for one answer."""
START: Final = 40.0
"""Seconds for the first one: the server is starting."""


def patience(method: str) -> float:
    """How long an answer is waited for, in seconds."""
    return START if method == "initialize" else ANSWER


class Wire(Protocol):
    """One way to the server."""

    modern: bool
    """Whether each request says the version and the client itself (2026-07-28)."""

    async def ask(self, method: str, params: dict[str, Any], ident: int | str | None = None) -> dict[str, Any]:
        """The result. Raises :class:`Refused`, :class:`Broken` or ``TimeoutError``."""

    async def tell(self, method: str) -> None:
        """A notification."""


async def converse(wire: Wire, talk: Talk) -> None:
    """Everything that is asked; what came of it is in ``talk``. Raises nothing: a broken conversation is a finding."""
    try:
        await _greet(wire, talk)
        talk.reached = True
        talk.tools = await _list(wire, talk, "tools")
        again = await _list(wire, talk, "tools") if talk.tools else []
        if talk.tools and _digest(again) != _digest(talk.tools):
            talk.broke(
                "protocol.changes", "high", "two listings one after the other differ", _difference(talk.tools, again)
            )
        talk.resources = [*await _list(wire, talk, "resources"), *await _list(wire, talk, "resourceTemplates")]
        talk.prompts = await _list(wire, talk, "prompts")
        await _unknown(wire, talk)
        await _ping(wire, talk)
    except Broken as over:
        talk.broke("protocol.silent", "high" if talk.reached else "critical", str(over))
    except Refused as no:
        talk.broke("protocol.silent", "critical", f"the handshake was refused: {no}")
    except TimeoutError:
        talk.broke(
            "protocol.silent",
            "high" if talk.reached else "critical",
            f"no answer within {(ANSWER if talk.reached else START):g} s",
        )


async def _greet(wire: Wire, talk: Talk) -> None:
    params = {"protocolVersion": HANDSHAKE, "capabilities": {}, "clientInfo": CLIENT}
    try:
        said = await wire.ask("initialize", params)
        version = str(said.get("protocolVersion", ""))
        info = said.get("serverInfo")
    except Refused:
        wire.modern = True
        said = await wire.ask("server/discover", {})
        meta = said.get("_meta")
        version, info = MODERN, said.get("serverInfo") or (meta or {}).get("io.modelcontextprotocol/serverInfo")
    talk.protocol = version
    talk.server = (
        {key: str(value)[:300] for key, value in info.items() if isinstance(value, str)}
        if isinstance(info, dict)
        else {}
    )
    raw = said.get("capabilities")
    talk.capabilities = raw if isinstance(raw, dict) else {}
    talk.instructions = str(said.get("instructions") or "")
    if not isinstance(info, dict) or not talk.server.get("name") or not isinstance(raw, dict):
        talk.broke("protocol.shape", "low", "its handshake lacks serverInfo with a name, or capabilities")
    if version not in KNOWN:
        talk.broke("protocol.version", "medium", "it speaks a version of the protocol that nobody knows", version)
    elif version < "2025-06-18":
        talk.broke("protocol.version", "low", "it speaks an old version of the protocol", version)
    if not wire.modern:
        await wire.tell("notifications/initialized")


_METHODS: Final = {
    "tools": ("tools/list", "tools"),
    "resources": ("resources/list", "resources"),
    "resourceTemplates": ("resources/templates/list", "resources"),
    "prompts": ("prompts/list", "prompts"),
}


async def _list(wire: Wire, talk: Talk, kind: str) -> list[dict[str, Any]]:
    """Every page of one kind, as far as there is an end."""
    method, capability = _METHODS[kind]
    if capability not in talk.capabilities and kind != "tools":
        return []
    found: list[dict[str, Any]] = []
    cursors: set[str] = set()
    params: dict[str, Any] = {}
    for _ in range(MAX_PAGES):
        try:
            page = await wire.ask(method, params)
        except Refused as no:
            if capability in talk.capabilities:
                talk.broke(
                    "protocol.error", "medium", f"{method} is refused, though it says that it has {capability}", no
                )
            return found
        items = page.get(kind)
        if not isinstance(items, list):
            talk.broke("protocol.shape", "medium", f"{method} answers without a list", page)
            return found
        good = [item for item in items if isinstance(item, dict)]
        if len(good) < len(items):
            talk.broke("protocol.shape", "medium", f"{method} lists what is no definition")
        found += good
        if len(found) > MAX_LISTED:
            talk.broke("protocol.pages", "high", f"more than {MAX_LISTED} {kind}, the first of which were looked at")
            return found[:MAX_LISTED]
        cursor = page.get("nextCursor")
        if cursor is None:
            return found
        if not isinstance(cursor, str) or cursor in cursors:
            talk.broke("protocol.pages", "high", f"{method} goes round in circles: a cursor came twice", cursor)
            return found
        cursors.add(cursor)
        params = {"cursor": cursor}
    talk.broke("protocol.pages", "high", f"{method} has more than {MAX_PAGES} pages")
    return found


async def _unknown(wire: Wire, talk: Talk) -> None:
    """A method that nobody has, asked for with an id that is a text: both are allowed, and not everybody copes."""
    try:
        await wire.ask("remit/no-such-method", {}, "a-text-1")
    except Refused as no:
        if no.code != -32601:
            talk.broke(
                "protocol.unknown_method", "info", "an unknown method is refused with another code than -32601", no
            )
    except TimeoutError:
        talk.broke("protocol.unknown_method", "low", "an unknown method gets no answer")
    else:
        talk.broke("protocol.unknown_method", "low", "an unknown method gets a result")


async def _ping(wire: Wire, talk: Talk) -> None:
    """Whether it says that it is alive, in the generation that has that (2025-11-25, Ping)."""
    if wire.modern:
        return
    try:
        await wire.ask("ping", {})
    except Refused as no:
        talk.broke("protocol.ping", "low", "a ping is refused", no)
    except TimeoutError:
        talk.broke("protocol.ping", "low", "a ping gets no answer")


def _digest(items: list[dict[str, Any]]) -> str:
    try:
        return digest(canonical(items))
    except ValueError:
        return repr(items)


def _difference(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> str:
    """The names of what differs."""
    before, after = ({str(item.get("name")): item for item in items} for items in (one, other))
    return ", ".join(sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name)))
