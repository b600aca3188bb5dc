"""What an attached server registers: its tools under names that a resource can have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from remit_broker.core.registry import MAX_DEFINITION, MAX_DEFINITIONS, definitions_of
from remit_broker.edges.attach.session import ServerIdentity
from remit_schemas.canonical import MAX_DEPTH, loads
from remit_schemas.envelope import encode
from remit_schemas.errors import Refusal
from remit_schemas.names import normalize

_AROUND: Final = 4
"""Levels of nesting that the request adds around one definition."""

_KEPT: Final = ("title", "description", "inputSchema", "outputSchema", "annotations", "icons")


@dataclass(frozen=True)
class Offer:
    """``args`` of the registration, the server's own name of each operation, and why tools were left out."""

    args: dict[str, Any]
    names: dict[str, str]
    left_out: tuple[str, ...]


def offer(tools: Sequence[dict[str, Any]], server: ServerIdentity) -> Offer:
    """The registration of ``tools``.

    A name is taken in its NFKC form. A tool whose name no resource can have (such as one with a slash), or whose name another
    tool already has, is left out with its reason: one bad name must not keep the others away, and guessing would let two tools
    be taken for each other.
    """
    kept: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    left_out: list[str] = []
    for tool in tools:
        op = normalize(tool["name"])
        definition = {"name": op} | {key: tool[key] for key in _KEPT if key in tool}
        if op in names:
            left_out.append(f"{tool['name']!r}: another tool has the same name in NFKC form")
        elif len(kept) == MAX_DEFINITIONS:
            left_out.append(f"{tool['name']!r} and all after it: at most {MAX_DEFINITIONS} tools are registered")
            break
        elif said := _unfit(definition):
            left_out.append(f"{tool['name']!r}: {said}")
        else:
            names[op] = tool["name"]
            kept.append(definition)
    args = {"tools": kept, "server": {"name": server.name, "version": server.version}}
    return Offer(args, names, tuple(left_out))


def _unfit(definition: dict[str, Any]) -> str:
    """Why the broker would refuse this definition, and with it all the others in its request; empty where it would not."""
    try:
        loads(encode(definition), max_bytes=2 * MAX_DEFINITION, max_depth=MAX_DEPTH - _AROUND)
        definitions_of("mcp", {"tools": [definition]})
    except Refusal as refused:
        return f"{refused.body.message} ({refused.body.ask})"
    return ""
