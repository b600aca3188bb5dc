"""Who exists (principals) and what they serve (targets), as plain values with a digest that pins each definition."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from remit_broker.core.extraction import Endorser
from remit_broker.core.label_sources import Declared
from remit_broker.core.pins import digest_of
from remit_broker.core.shown import Shut
from remit_schemas.budget import ONE_CALL, Budget
from remit_schemas.canonical import canonical
from remit_schemas.errors import Code, refusal
from remit_schemas.names import Kind, is_op, normalize
from remit_schemas.scope import Scope, parse_scope


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """An agent or MCP server that may connect. ``nkey`` is the public user nkey it proves at connect."""

    name: str
    kind: Kind
    nkey: str
    tenant: str = "default"
    tier: str = "standard"
    created: str = ""


class Annotations(msgspec.Struct, frozen=True, kw_only=True):
    """MCP tool annotations with the protocol's own defaults (2025-11-25, ToolAnnotations): a claim of the server."""

    read_only: bool = False
    destructive: bool = True
    idempotent: bool = False
    open_world: bool = True


class Definition(msgspec.Struct, frozen=True, kw_only=True):
    """One skill or tool as its server describes it; everything in it is covered by the digest that pins it."""

    op: str
    title: str = ""
    description: str = ""
    input_schema: dict[str, Any] = {}
    output_schema: dict[str, Any] | None = None
    annotations: dict[str, Any] = {}
    needs: tuple[str, ...] | None = None
    icons: tuple[dict[str, Any], ...] = ()
    execution: dict[str, Any] = {}
    """``taskSupport``, where the tool can be worked on in the background: ``optional`` or ``required``."""

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical definition."""
        return digest_of(self.plain())

    def plain(self) -> dict[str, Any]:
        """All of it, as what is pinned. What is not there is left out where definitions that were pinned earlier did not have it."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        if not self.icons:
            del found["icons"]
        if not self.execution:
            del found["execution"]
        return found


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What a resource resolves to. ``ceiling`` is None where the callee's own needs are not limited (a tool has none)."""

    kind: Kind
    callee: str
    op: str
    tier: str
    definition: str
    input_schema: dict[str, Any]
    output_schema: dict[str, Any] | None
    annotations: Annotations
    ceiling: Scope | None
    price: Budget = ONE_CALL
    labels: Declared = Declared()
    endorser: Endorser | None = None
    groups: tuple[str, ...] = ()
    quarantined: str = ""
    shut: Shut = Shut()
    """Of an operation on what a server shows beside its tools: what of it waits to be accepted."""


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """What one principal serves at the moment, as it said when it attached."""

    name: str
    kind: Kind
    server: dict[str, Any] = {}
    definitions: tuple[Definition, ...] = ()
    state: Literal["attached", "detached"] = "attached"
    at: str = ""
    offers: dict[str, Any] = {}
    """What an MCP server shows beside its tools: ``capabilities``, ``instructions``, ``resources``, ``templates``, ``prompts``."""
    held: dict[str, str] = {}
    """Of definitions, and of what is shown beside tools, that nobody has accepted: why they wait."""
    refused: tuple[str, ...] = ()
    """A line for each of what the server lists that cannot be used at all, and is registered nowhere."""


MAX_DEFINITIONS = 2000
MAX_DEFINITION = 64 * 1024
MAX_OFFERS = 256 * 1024
"""Bytes of JSON of all that a server shows beside its tools."""

TASKS = "tasks"
"""What is shown of a server of the generation with sessions that works on calls in the background where it is asked to."""
OWN_TASKS = "own-tasks"
"""Of one of the generation without, which does of its own accord."""
MAX_REFUSED = 100
"""Lines about what cannot be used, each of at most ``MAX_LINE`` characters."""
MAX_LINE = 1000

_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_URI = {"type": "string", "minLength": 1, "maxLength": 4096}
_OPERATIONS: dict[str, tuple[str, str, dict[str, Any], list[str]]] = {
    "resources": ("$resource", "Read a resource", {"uri": _URI}, ["uri"]),
    "prompts": ("$prompt", "Get a prompt", {"name": {"type": "string"}, "arguments": _TEXTS}, ["name"]),
    "subscriptions": ("$subscribe", "Be told when a resource changes", {"uri": _URI}, ["uri"]),
    "completions": (
        "$complete",
        "Complete an argument of a prompt or of a template of resources",
        {"ref": {"type": "object"}, "argument": {"type": "object"}, "context": {"type": "object"}},
        ["ref", "argument"],
    ),
}


def operations_of(offers: dict[str, Any]) -> dict[str, Definition]:
    """What can be asked of a server beside its tools: ``$resource`` with a URI, ``$prompt`` with a name, ``$complete``,
    ``$subscribe``.

    The definitions are Remit's own, so that no server can change them. All of them only read.
    """
    can = offers.get("capabilities")
    return {
        op: Definition(
            op=op,
            description=text,
            input_schema={
                "type": "object", "properties": properties, "required": required, "additionalProperties": False,
            },
            annotations={"readOnlyHint": True},
        )
        for capability, (op, text, properties, required) in _OPERATIONS.items()
        if isinstance(can, list) and capability in can
    }  # fmt: skip


def offers_of(args: dict[str, Any]) -> dict[str, Any]:
    """What a server shows beside its tools, as an attach request says it. Refuses MALFORMED and TOO_LARGE."""
    raw = args.get("offers", {})
    good = isinstance(raw, dict) and all(
        isinstance(some := raw.get(name, []), list) and all(isinstance(one, kind) for one in some)
        for name, kind in (("capabilities", str), ("resources", dict), ("templates", dict), ("prompts", dict))
    )
    if not good or not isinstance(raw.get("instructions", ""), str) or len(raw) > 8:
        raise refusal(
            Code.MALFORMED, "offers is not what a server shows", rule="attach.offers",
            ask="send capabilities, instructions, resources, templates and prompts",
        )  # fmt: skip
    if len(msgspec.json.encode(raw)) > MAX_OFFERS + MAX_DEFINITION:
        raise refusal(
            Code.TOO_LARGE, "the server shows too much", rule="attach.offers", ask=f"show at most {MAX_OFFERS} bytes"
        )
    try:
        canonical(raw)
    except ValueError:
        raise refusal(Code.MALFORMED, "what the server shows has no canonical form", rule="attach.offers",
                      ask="use finite numbers within 2^53-1") from None  # fmt: skip
    return dict(raw)


def refused_of(args: dict[str, Any]) -> tuple[str, ...]:
    """What an attach request says was left out, as lines. Refuses MALFORMED."""
    raw = args.get("left_out", [])
    if not isinstance(raw, list) or len(raw) > 2 * MAX_REFUSED or not all(isinstance(one, str) for one in raw):
        raise refusal(
            Code.MALFORMED,
            "left_out is no list of lines",
            rule="attach.left_out",
            ask="send one line for each, at most 200",
        )
    return tuple(one[:MAX_LINE] for one in raw)


def annotations_of(raw: dict[str, Any]) -> Annotations:
    """MCP's hints with their defaults; ``destructiveHint`` means nothing where ``readOnlyHint`` is true."""
    read_only = raw.get("readOnlyHint") is True
    return Annotations(
        read_only=read_only,
        destructive=not read_only and raw.get("destructiveHint", True) is not False,
        idempotent=raw.get("idempotentHint") is True,
        open_world=raw.get("openWorldHint", True) is not False,
    )


def definitions_of(kind: Kind, args: dict[str, Any]) -> tuple[Definition, ...]:
    """The definitions in an attach request (``skills`` of an agent, ``tools`` of an MCP server). Refuses MALFORMED."""
    raws = args.get("tools" if kind == "mcp" else "skills")
    if not isinstance(raws, list) or len(raws) > MAX_DEFINITIONS:
        raise refusal(
            Code.MALFORMED, "no list of definitions", rule="attach.definitions", ask=f"send at most {MAX_DEFINITIONS}"
        )
    found = tuple(_definition(kind, raw) for raw in raws)
    if kind == "mcp":
        # INVARIANT: what stands for the reading of resources and prompts is ours, not a tool of that name
        # (test_a_tool_that_is_called_as_an_operation_of_ours_is_left_out).
        found = (*(one for one in found if not one.op.startswith("$")), *operations_of(offers_of(args)).values())
    names = [definition.op for definition in found]
    if len(set(names)) != len(names):
        raise refusal(
            Code.MALFORMED, "two definitions have one name", rule="attach.collision", ask="give each its own name"
        )
    return found


def _definition(kind: Kind, raw: Any) -> Definition:
    if not isinstance(raw, dict) or not isinstance(name := raw.get("name"), str) or not is_op(name):
        said = raw.get("name") if isinstance(raw, dict) else None
        hint = " (not in NFKC form)" if isinstance(said, str) and said != normalize(said) else ""
        raise refusal(
            Code.MALFORMED, f"{said!r} cannot name a skill or tool{hint}", rule="attach.name",
            ask="use 1 to 256 printable characters without / or *, in NFKC form",
        )  # fmt: skip
    schema, output, needs = (
        raw.get("inputSchema", raw.get("input_schema")),
        raw.get("outputSchema", raw.get("output_schema")),
        raw.get("needs"),
    )
    annotations, icons, execution = raw.get("annotations") or {}, raw.get("icons") or [], raw.get("execution") or {}
    good = (
        isinstance(schema, dict) and isinstance(output, dict | None) and isinstance(annotations, dict)
        and (needs is None or (isinstance(needs, list) and all(isinstance(need, str) for need in needs)))
        and isinstance(icons, list) and all(isinstance(icon, dict) for icon in icons) and isinstance(execution, dict)
    )  # fmt: skip
    if not good or schema is None:
        raise refusal(Code.MALFORMED, f"the definition of {name!r} is not well formed", rule="attach.definition",
                      ask="send inputSchema (an object), and outputSchema, annotations, needs, icons where there are any")  # fmt: skip
    for need in needs or ():
        parse_scope(need)
    found = Definition(
        op=name,
        title=str(raw.get("title") or ""),
        description=str(raw.get("description") or ""),
        input_schema=schema,
        output_schema=output,
        annotations=annotations,
        needs=tuple(needs) if needs is not None else None,
        icons=tuple(icons),
        execution=execution,
    )
    try:
        size = len(canonical(found.plain()))
    except ValueError:
        raise refusal(Code.MALFORMED, f"the definition of {name!r} has no canonical form", rule="attach.definition",
                      ask="use finite numbers within 2^53-1") from None  # fmt: skip
    if size > MAX_DEFINITION:
        raise refusal(Code.TOO_LARGE, f"the definition of {name!r} has {size} bytes", rule="attach.size",
                      ask=f"keep it within {MAX_DEFINITION}")  # fmt: skip
    return found


def ceiling_of(kind: Kind, definition: Definition) -> Scope | None:
    """What a skill may ever be given: the scopes it says it needs; None where it names none, and nothing for a tool."""
    if kind == "mcp":
        return Scope.of(())
    if definition.needs is None:
        return None
    return Scope.of(parse_scope(need) for need in definition.needs)
