"""A large catalogue as three tools: one that searches it, one that describes what was found, one that calls it.

What a model reads before it begins is then three definitions, however many tools there are. A call through the third is the very hop
that a direct call is: the same resource and arguments, the same checks, the same record.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from remit_broker.core.tool_search import Described, found
from remit_broker.edges.mcp.catalogue import Catalogue, Shown, described
from remit_broker.edges.mcp.jsonrpc import INVALID_PARAMS, Fault

SEARCH: Final = "search_tools"
DESCRIBE: Final = "describe_tools"
CALL: Final = "call_tool"
MOST: Final = 50
"""Tools that one search tells of; ten where nothing else is said."""
AT_ONCE: Final = 20
"""Tools that are described at once."""
QUESTION: Final = 1000
_TOLD: Final = 240
"""Characters of a description in an answer of a search."""

_READS: Final = {"readOnlyHint": True, "openWorldHint": False}
TOOLS: Final[list[dict[str, Any]]] = [
    {
        "name": SEARCH,
        "title": "Search tools",
        "description": "Finds tools by words that stand in their names, descriptions or arguments. Gives their names and what they "
        "are for; without a query the first ones.",
        "inputSchema": {
            "type": "object",
            "properties": {
                "query": {"type": "string", "maxLength": QUESTION},
                "limit": {"type": "integer", "minimum": 1, "maximum": MOST},
            },
            "additionalProperties": False,
        },
        "annotations": _READS,
    },
    {
        "name": DESCRIBE,
        "title": "Describe tools",
        "description": "The whole definitions of tools by their names, with the schemas of their arguments and results.",
        "inputSchema": {
            "type": "object",
            "properties": {
                "names": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": AT_ONCE},
            },
            "required": ["names"],
            "additionalProperties": False,
        },
        "annotations": _READS,
    },
    {
        "name": CALL,
        "title": "Call a tool",
        "description": "Calls a tool by its name, with arguments as its definition has them, and gives its answer as it is.",
        "inputSchema": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "arguments": {"type": "object"}},
            "required": ["name"],
            "additionalProperties": False,
        },
    },
]  # fmt: skip


class Meant(NamedTuple):
    """The tool that a call through :data:`CALL` means, and its arguments."""

    name: str
    arguments: dict[str, Any]


async def answer(name: str, args: dict[str, Any], catalogue: Catalogue) -> dict[str, Any] | Meant:
    """What a search or a description finds, as the result of a tool; or what is to be called. Raises :class:`Fault`.

    INVARIANT: a search tells of nothing that a listing would not (test_a_search_finds_what_may_be_seen_and_no_more).
    """
    match name:
        case "search_tools":
            return _searched(args, await catalogue.tools())
        case "describe_tools":
            return _described(args, await catalogue.tools())
        case "call_tool":
            wanted, arguments = args.get("name"), args.get("arguments", {})
            if set(args) - {"name", "arguments"} or not isinstance(wanted, str) or not isinstance(arguments, dict):
                raise Fault(INVALID_PARAMS, f"{CALL} needs the name of a tool, and an object as its arguments")
            return Meant(wanted, arguments)
    raise Fault(INVALID_PARAMS, f"Unknown tool: {name[:64]}. Here are {SEARCH}, {DESCRIBE} and {CALL}")


def _searched(args: dict[str, Any], tools: Sequence[Shown]) -> dict[str, Any]:
    query, limit = args.get("query", ""), args.get("limit", 10)
    good = isinstance(query, str) and len(query) <= QUESTION and type(limit) is int and 1 <= limit <= MOST
    if set(args) - {"query", "limit"} or not good:
        raise Fault(
            INVALID_PARAMS, f"{SEARCH} takes a query of at most {QUESTION} characters, and a limit of at most {MOST}"
        )
    known = [
        Described(one.name, one.definition.title, one.definition.description, one.definition.input_schema)
        for one in tools
    ]
    hits = [
        {"name": one.name, "title": one.title, "description": _short(one.description)}
        for one in (known[at] for at in found(query, known, limit))
    ]
    return _result({"tools": hits, "of": len(tools)})


def _described(args: dict[str, Any], tools: Sequence[Shown]) -> dict[str, Any]:
    names = args.get("names")
    if set(args) != {"names"} or not isinstance(names, list) or not 1 <= len(names) <= AT_ONCE:
        raise Fault(INVALID_PARAMS, f"{DESCRIBE} needs the names of at most {AT_ONCE} tools")
    known = {one.name: one for one in tools}
    asked = dict.fromkeys(str(name) for name in names)
    return _result(
        {
            "tools": [described(known[name]) for name in asked if name in known],
            "unknown": [name[:64] for name in asked if name not in known],
        }
    )


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _TOLD else f"{flat[:_TOLD]}…"


def _result(value: dict[str, Any]) -> dict[str, Any]:
    text = msgspec.json.encode(value).decode()
    return {"content": [{"type": "text", "text": text}], "structuredContent": value, "isError": False}
