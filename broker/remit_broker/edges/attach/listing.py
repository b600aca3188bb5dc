"""What a live server lists, entry by entry: one that is malformed is left out with its reason, and keeps none of the others away."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

import mcp_types as types
from mcp.client.session import ClientSession
from mcp.shared.inbound import find_invalid_x_mcp_header
from mcp_types import methods
from pydantic import BaseModel, ValidationError

from remit_broker.edges.attach.source import ServerError

MAX_ENTRIES: Final = 10_000
MAX_PAGES: Final = 1_000
MAX_LEFT_OUT: Final = 100
"""Entries that are told of one by one; of more only how many there are."""

_SAID: Final = 300
"""Characters that are told of one entry."""
_PAGE: Final = {"ttlMs": 0, "cacheScope": "private", "resultType": "complete"}
"""What a page has around its entries in the generation that has it."""


NO_JSON: Final = "it holds what JSON cannot: a number that is none, half a character, or too much nesting"


@dataclass(frozen=True)
class List:
    """One of the lists: where it stands in a page, how it is asked for, and what an entry of it is."""

    key: str
    entry: type[BaseModel]
    method: str
    name: str = "name"


TOOLS: Final = List("tools", types.Tool, "tools/list")
PROMPTS: Final = List("prompts", types.Prompt, "prompts/list")
RESOURCES: Final = List("resources", types.Resource, "resources/list", "uri")
TEMPLATES: Final = List("resourceTemplates", types.ResourceTemplate, "resources/templates/list", "uriTemplate")


@dataclass(frozen=True)
class Listed:
    """The entries that can be used, as the server describes them, and one line for each that cannot."""

    entries: tuple[dict[str, Any], ...] = ()
    left_out: tuple[str, ...] = ()


async def listed(session: ClientSession, of: List) -> Listed:
    """Every entry of every page.

    Raises :class:`~remit_broker.edges.attach.source.ServerError` where it is no list or has no end, and :class:`MCPError` where the
    server answers with an error.
    """
    found: list[dict[str, Any]] = []
    left_out: list[str] = []
    count, cursor, seen = 0, None, set[str]()
    for _ in range(MAX_PAGES):
        entries, cursor = await _page(session, of, cursor)
        for raw in entries:
            kept = _entry(session, of, raw)
            if isinstance(kept, str):
                left_out.append(told(raw.get(of.name) if isinstance(raw, dict) else raw, kept))
            else:
                found.append(kept)
        count += len(entries)
        if count > MAX_ENTRIES:
            raise ServerError(f"it lists more than {MAX_ENTRIES} {of.key}")
        if cursor is None:
            return Listed(tuple(found), tuple(left_out))
        if cursor in seen:
            raise ServerError(f"its list of {of.key} goes round in circles (a cursor came twice)")
        seen.add(cursor)
    raise ServerError(f"its list of {of.key} has more than {MAX_PAGES} pages")


async def answers(session: ClientSession) -> None:
    """Return once the server answered a listing, whatever is in it: both generations have it, and ping has gone."""
    await _raw(session, TOOLS, None)


def told(name: object, why: str) -> str:
    """One line about something that was left out, of bounded length."""
    shown = repr(name[:80] if isinstance(name, str) else name)[:_SAID]
    return f"{shown}: {' '.join(why.split())[:_SAID]}"


def bounded(lines: tuple[str, ...]) -> tuple[str, ...]:
    """The first of them, and how many more there are."""
    more = len(lines) - MAX_LEFT_OUT
    return (*lines[:MAX_LEFT_OUT], f"and {more} more") if more > 0 else lines


async def _page(session: ClientSession, of: List, cursor: str | None) -> tuple[list[Any], str | None]:
    raw = await _raw(session, of, cursor)
    entries, following = raw.get(of.key), raw.get("nextCursor")
    if not isinstance(entries, list) or not isinstance(following, str | None):
        raise ServerError(f"its answer is no list of {of.key}")
    return entries, following


async def _raw(session: ClientSession, of: List, cursor: str | None) -> dict[str, Any]:
    """A page as it came. Not the library's own listing: it refuses a whole page for one entry."""
    said: dict[str, Any] = {"method": of.method} | ({} if cursor is None else {"params": {"cursor": cursor}})
    options: Any = {}
    session._stamp(said, options)
    return await session._dispatcher.send_raw_request(of.method, said.get("params"), options)


def _entry(session: ClientSession, of: List, raw: Any) -> dict[str, Any] | str:
    """The entry, or why it cannot be used."""
    version = session._negotiated_version or "2025-11-25"
    try:
        # The library would make null of a number that is none, and another definition of this one.
        json.dumps(raw, allow_nan=False)
        # What a client of ours would refuse a whole listing for is left out here.
        methods.validate_server_result(of.method, version, {of.key: [raw], **_PAGE})
        entry = of.entry.model_validate(raw, by_name=False)
        if isinstance(entry, types.Tool) and not _absorbed(session, entry):
            return find_invalid_x_mcp_header(entry.input_schema) or "it names headers that cannot be"
        return entry.model_dump(by_alias=True, mode="json", exclude_none=True)
    except ValidationError as wrong:
        return _why(wrong)
    except (ValueError, RecursionError):
        return NO_JSON


def _absorbed(session: ClientSession, tool: types.Tool) -> bool:
    """Whether a tool can be called; the library remembers which of its arguments go into headers as well."""
    page = types.ListToolsResult(tools=[tool])
    return bool(session._absorb_tool_listing(page, complete=False).tools)


def _why(wrong: ValidationError) -> str:
    """Where it is malformed, and how; nothing of what stands there."""
    first = wrong.errors(include_input=False, include_url=False)[0]
    # Below the list and its one entry.
    at = ".".join(str(part) for part in first["loc"] if not isinstance(part, int))
    return f"{at.partition('.')[2] or at or 'it'}: {first['msg']}"
