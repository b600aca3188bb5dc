"""What an attached server registers: its tools under names that a resource can have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from mcp.shared.exceptions import MCPError

from remit_broker.core.registry import (
    MAX_DEFINITION,
    MAX_DEFINITIONS,
    MAX_OFFERS,
    OWN_TASKS,
    TASKS,
    definitions_of,
    operations_of,
)
from remit_broker.edges.attach.listing import NO_JSON, PROMPTS, RESOURCES, TEMPLATES, TOOLS, List, Listed, bounded, told
from remit_broker.edges.attach.server_tasks import EXTENSION
from remit_broker.edges.attach.session import ServerIdentity, ToolSession
from remit_broker.edges.attach.source import ServerError
from remit_schemas.canonical import MAX_DEPTH, canonical, loads
from remit_schemas.envelope import MAX_ENVELOPE, encode
from remit_schemas.errors import Refusal
from remit_schemas.names import normalize

_AROUND: Final = 4
"""Levels of nesting that the request adds around one definition."""

_REQUEST: Final = 64 * 1024
"""Bytes of a registration beside the definitions: the request itself, and what is said of those that were left out."""
_KEEPING: Final = 96
"""Bytes that the registry needs for one definition beside what was sent."""
ROOM: Final = MAX_ENVELOPE - _REQUEST
"""Bytes of all definitions and of what is shown beside them: they are one message."""

_KEPT: Final = ("title", "description", "inputSchema", "outputSchema", "annotations", "icons")


CAPABILITIES: Final = ("tools", "resources", "prompts", "completions", "logging")
MAX_INSTRUCTIONS: Final = 16 * 1024


@dataclass(frozen=True)
class Offer:
    """``args`` of the registration, the server's own name of each operation, and why tools were left out."""

    args: dict[str, Any]
    names: dict[str, str]
    left_out: tuple[str, ...]
    tasks: dict[str, str]
    """Tools that the server works on in the background, by their operations: ``optional`` or ``required``."""


@dataclass(frozen=True)
class Offered:
    """Everything a server lists, as it describes it, and what it says that it can do."""

    tools: Sequence[dict[str, Any]]
    resources: Sequence[dict[str, Any]] = ()
    templates: Sequence[dict[str, Any]] = ()
    prompts: Sequence[dict[str, Any]] = ()
    capabilities: Sequence[str] = ()
    instructions: str = ""
    left_out: Sequence[str] = ()
    """A line for each entry that is malformed."""


async def offered_by(session: ToolSession) -> Offered:
    """What a live server lists. Raises :class:`~remit_broker.edges.attach.session.ServerError`."""
    can = session.capabilities
    has = [name for name in CAPABILITIES if getattr(can, name) is not None]
    if can.resources is not None and can.resources.subscribe:
        has.append("subscriptions")
    has += _tasks(session)
    tools = await session.listing(TOOLS) if can.tools is not None or not has else Listed()
    resources = await _or_none(session, RESOURCES) if can.resources is not None else Listed()
    templates = await _or_none(session, TEMPLATES) if can.resources is not None else Listed()
    prompts = await _or_none(session, PROMPTS) if can.prompts is not None else Listed()
    return Offered(
        tools=tools.entries,
        resources=resources.entries,
        templates=templates.entries,
        prompts=prompts.entries,
        capabilities=has,
        instructions=session.instructions[:MAX_INSTRUCTIONS],
        left_out=(*tools.left_out, *prompts.left_out, *templates.left_out, *resources.left_out),
    )


def _tasks(session: ToolSession) -> list[str]:
    """Whether the server works on calls in the background: where it is asked to, or of its own accord."""
    can = session.capabilities
    if not session.has_sessions:
        return [OWN_TASKS] if EXTENSION in (can.extensions or {}) else []
    asked = can.tasks.requests if can.tasks is not None else None
    return [TASKS] if asked is not None and asked.tools is not None and asked.tools.call is not None else []


async def _or_none(session: ToolSession, of: List) -> Listed:
    """A listing; nothing where the server has none, or one that cannot be used: its tools are not to go with it."""
    try:
        return await session.listing(of)
    except MCPError:
        return Listed()
    except ServerError as wrong:
        return Listed(left_out=(f"all {of.key}: {wrong}",))


def offer(offered: Offered, server: ServerIdentity) -> Offer:
    """The registration of what is offered.

    A name is taken in its NFKC form. A tool whose name no resource can have (such as one with a slash), whose name another
    tool already has, or that is too large, is left out with its reason: one bad tool must not keep the others away, and guessing
    would let two tools be taken for each other.
    """
    kept: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    tasks: dict[str, str] = {}
    left_out = [*offered.left_out]
    shown = _shown(offered, left_out)
    room = ROOM - len(encode(shown))
    for tool in offered.tools:
        op = normalize(tool["name"])
        definition = {"name": op} | {key: tool[key] for key in _KEPT if key in tool}
        support = _support(tool, offered.capabilities)
        if support and OWN_TASKS not in offered.capabilities:
            definition["execution"] = {"taskSupport": support}
        if op.startswith("$"):
            left_out.append(told(tool["name"], "names that begin with $ are Remit's own"))
        elif op in names:
            left_out.append(told(tool["name"], "another tool has the same name in NFKC form"))
        elif len(kept) == MAX_DEFINITIONS:
            left_out.append(f"{tool['name']!r} and all after it: at most {MAX_DEFINITIONS} tools are registered")
            break
        elif said := _unfit(definition):
            left_out.append(told(tool["name"], said))
        elif (size := len(encode(definition)) + _KEEPING) > room:
            left_out.append(
                told(
                    tool["name"], f"with it all would be larger than {ROOM} bytes; attach fewer tools, or shorter ones"
                )
            )
        else:
            room -= size
            names[op] = tool["name"]
            kept.append(definition)
            if support:
                tasks[op] = support
    args = {"tools": kept, "partly": True, "server": {"name": server.name, "version": server.version}}
    if shown:
        args["offers"] = shown
        names |= {op: op for op in operations_of(shown)}
    kept_away = bounded(tuple(left_out))
    if kept_away:
        args["left_out"] = [*kept_away]
    return Offer(args, names, kept_away, tasks)


def _support(tool: dict[str, Any], can: Sequence[str]) -> str:
    """Whether a tool is worked on in the background: ``optional``, ``required``, or not at all, which is what it says of itself where
    its server says that it does such a thing.
    """
    if OWN_TASKS in can:
        return "optional"
    said = tool.get("execution")
    support = said.get("taskSupport") if isinstance(said, dict) and TASKS in can else None
    return support if support in ("optional", "required") else ""


def _shown(offered: Offered, left_out: list[str]) -> dict[str, Any]:
    """What is shown of a server beside its tools; of lists that are too large, as much as fits."""
    shown: dict[str, Any] = {"capabilities": [name for name in offered.capabilities if name != "tools"]}
    if offered.instructions:
        shown["instructions"] = offered.instructions
    room = MAX_OFFERS
    for name in ("prompts", "templates", "resources"):
        kept = []
        for one in getattr(offered, name):
            if not _pinnable(one):
                left_out.append(told(one.get("uri", one.get("uriTemplate", one.get("name"))), NO_JSON))
                continue
            room -= len(encode(one))
            if room < 0:
                left_out.append(f"{name} beyond {MAX_OFFERS} bytes")
                break
            kept.append(one)
        if kept:
            shown[name] = kept
    return shown if any(shown.values()) else {}


def _pinnable(one: dict[str, Any]) -> bool:
    """Whether a digest can stand for it: numbers within what JSON carries everywhere."""
    try:
        canonical(one)
    except (ValueError, RecursionError):
        return False
    return True


def _unfit(definition: dict[str, Any]) -> str:
    """Why the broker would refuse this definition, and with it all the others in its request; empty where it would not."""
    try:
        loads(encode(definition), max_bytes=2 * MAX_DEFINITION, max_depth=MAX_DEPTH - _AROUND)
        definitions_of("mcp", {"tools": [definition]})
    except Refusal as refused:
        return f"{refused.body.message} ({refused.body.ask})"
    except (ValueError, RecursionError):
        return NO_JSON
    return ""
