"""A record as a span, by one pure function each: the same ids, so that record, grant and span find each other.

Trace id = txn, span id = hop, parent = the parent hop, whatever trace context an agent sent or dropped; what it did send
becomes a link. So do the task that this one carries on, the call that an approval was asked for, and the call that failed and is
made again: each link says which of these it is. Attributes come from this file alone: nothing a caller wrote can name one.
Conventions: OpenTelemetry GenAI, MCP and messaging (Development), ``error.type`` (stable), ``remit.*`` where there is none.
"""

from __future__ import annotations

import re
from typing import Final, Literal

import msgspec

from remit_broker.core.times import seconds_of
from remit_broker.core.tree import Fold, Node
from remit_schemas import subjects
from remit_schemas.budget import Budget
from remit_schemas.names import parse_resource
from remit_schemas.records import HopClosed, HopOpened, HopRefused, HopResumed, TxnOpened

Value = str | int | bool | tuple[str, ...]

_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


Why = Literal["caller", "continues", "approval", "retry"]
"""Why a span points at another: a context that the caller sent, a task that is carried on, the refused call that people approved, the
same call before, which failed."""


class Link(msgspec.Struct, frozen=True):
    """Another span this one points at. Ids are lower-case hex."""

    trace: str
    span: str
    why: Why
    flags: int = 0


class SpanData(msgspec.Struct, frozen=True, kw_only=True):
    """A finished span. Times are Unix nanoseconds; ``error`` is the status description, None where the hop went well."""

    trace: str
    span: str
    parent: str | None
    name: str
    kind: Literal["client", "server"]
    start: int
    end: int
    attributes: dict[str, Value]
    links: tuple[Link, ...] = ()
    error: str | None = None


def delegated(record: TxnOpened) -> SpanData:
    """The root of the trace: a user handed a task to a first agent. It is a moment; the hops below it take the time."""
    at = _nanos(record.at)
    attributes: dict[str, Value] = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": record.agent,
        "gen_ai.conversation.id": record.txn,
        "enduser.pseudo.id": record.user,
        "remit.tenant": record.tenant,
        "remit.depth": 0,
        "remit.grant.jti": record.jti,
        "remit.record.hash": record.hash,
        **_budget("remit.budget", record.budget),
    }
    links: tuple[Link, ...] = ()
    if record.continues:
        txn, _, hop = record.continues.partition(".")
        links = (Link(txn, hop, "continues"),)
    return SpanData(
        trace=record.txn, span=record.hop, parent=None, name=f"invoke_agent {record.agent}", kind="server",
        start=at, end=at + 1_000_000, attributes=attributes, links=links,
    )  # fmt: skip


def closed(opened: HopOpened, closed: HopClosed, past: Fold) -> SpanData:
    """A hop that ended, as the replica that ran it knows it; ``past`` is the txn when it was decided on."""
    attributes: dict[str, Value] = {
        "remit.decision": opened.decision.effect,
        "remit.policy.rules": opened.decision.rules,
        "remit.policy.revision": opened.decision.revision,
    }
    if opened.findings:
        attributes["remit.findings"] = tuple(sorted({finding.kind for finding in opened.findings}))
    begun = _Begun(
        at=opened.at, parent=opened.parent, caller=opened.caller, resource=opened.resource, depth=opened.depth,
        jti=opened.jti, sealed=opened.hash, budget=opened.budget, labels=opened.labels,
        links=(
            *_asked(opened),
            *_retry(past, opened.hop, opened.parent, opened.resource, opened.args_digest),
        ),
    )  # fmt: skip
    return _hop(begun, closed, past.user, attributes)


def swept(node: Node, closed: HopClosed, fold: Fold, resumed: HopResumed | None = None) -> SpanData:
    """A hop that was closed on behalf of whoever could not any more, or that was parked and ``resumed``: what the fold knows of its
    opening is enough.
    """
    begun = _Begun(
        at=node.at, parent=node.parent or "", caller=node.caller, resource=node.resource, depth=node.depth,
        jti=f"{closed.txn}.{node.hop}.{node.n}", sealed=node.rec, budget=node.limit, labels=tuple(sorted(node.labels)),
        links=(
            *(_asked(resumed) if resumed is not None else ()),
            *_retry(fold, node.hop, node.parent, node.resource, node.args_digest),
        ),
    )  # fmt: skip
    return _hop(begun, closed, fold.user, {"remit.resumed": True} if resumed is not None else {})


class _Begun(msgspec.Struct, frozen=True, kw_only=True):
    """What a span says of the opening of its hop."""

    at: str
    parent: str
    caller: str
    resource: str
    depth: int
    jti: str
    sealed: str
    budget: Budget
    labels: tuple[str, ...]
    links: tuple[Link, ...] = ()


def _asked(record: HopOpened | HopResumed) -> tuple[Link, ...]:
    """The context its caller sent, and the refused call that people approved."""
    approved = (Link(record.txn, record.approval, "approval"),) if record.approval else ()
    return (*_links(record.link), *approved)


def _retry(fold: Fold, hop: str, parent: str | None, resource: str, args_digest: str) -> tuple[Link, ...]:
    """The same call under the same hop before this one, the latest that did not go well."""
    before = [
        node
        for node in fold.nodes.values()
        if node.args_digest == args_digest and node.resource == resource and node.parent == parent
        and node.outcome not in (None, "ok") and node.hop != hop
    ]  # fmt: skip
    me = fold.nodes.get(hop)
    before = [node for node in before if me is None or node.seq < me.seq]
    return (Link(fold.txn, max(before, key=lambda node: node.seq).hop, "retry"),) if before else ()


def _hop(begun: _Begun, closed: HopClosed, user: str, more: dict[str, Value]) -> SpanData:
    failed = closed.outcome != "ok"
    attributes: dict[str, Value] = {
        **_target(begun.resource),
        "gen_ai.conversation.id": closed.txn,
        "enduser.pseudo.id": user,
        "remit.tenant": closed.tenant,
        "remit.caller": begun.caller,
        "remit.resource": begun.resource,
        "remit.depth": begun.depth,
        "remit.grant.jti": begun.jti,
        "remit.record.hash": begun.sealed,
        "remit.outcome": closed.outcome,
        "remit.effect": closed.effect,
        **_budget("remit.budget", begun.budget),
        **_budget("remit.spent", closed.spent),
        **more,
    }
    if begun.labels:
        attributes["remit.labels"] = begun.labels
    if failed:
        attributes["error.type"] = closed.code or ("tool_error" if closed.outcome == "failed" else closed.outcome)
    if closed.rule:
        attributes["remit.rule"] = closed.rule
    if closed.unmetered:
        attributes["remit.unmetered"] = True
    return SpanData(
        trace=closed.txn, span=closed.hop, parent=begun.parent, name=_name(begun.resource), kind="client",
        start=_nanos(begun.at), end=max(_nanos(closed.at), _nanos(begun.at)), attributes=attributes,
        links=begun.links, error=(closed.rule or closed.outcome) if failed else None,
    )  # fmt: skip


def refused(record: HopRefused) -> SpanData:
    """A call that never became a hop: an error span under the caller's hop, or a trace of its own where no grant held."""
    at = _nanos(record.at)
    attributes: dict[str, Value] = {
        **_target(record.resource),
        "remit.tenant": record.tenant,
        "remit.caller": record.caller,
        "remit.resource": record.resource,
        "remit.decision": "deny",
        "remit.stage": record.stage,
        "remit.rule": record.rule,
        "remit.record.hash": record.hash,
        "remit.count": record.count,
        "error.type": record.code,
    }
    if record.user:
        attributes["enduser.pseudo.id"] = record.user
    if record.findings:
        attributes["remit.findings"] = tuple(sorted({finding.kind for finding in record.findings}))
    return SpanData(
        trace=record.txn or record.hop * 2, span=record.hop, parent=record.parent, name=_name(record.resource),
        kind="client", start=at, end=at, attributes=attributes, links=_links(record.link), error=record.code,
    )  # fmt: skip


def _nanos(at: str) -> int:
    return round(seconds_of(at) * 1000) * 1_000_000


def _parts(resource: str) -> tuple[str, str, str] | None:
    try:
        return parse_resource(resource)
    except Exception:  # a refused call may have named anything
        return None


def _name(resource: str) -> str:
    parts = _parts(resource)
    if parts is None:
        return "refused request"
    return f"execute_tool {parts[2]}" if parts[0] == "mcp" else f"invoke_agent {parts[1]}"


def _target(resource: str) -> dict[str, Value]:
    parts = _parts(resource)
    if parts is None:
        return {}
    kind, name, op = parts
    sent: dict[str, Value] = {
        "messaging.system": "nats", "messaging.operation.type": "send",
        "messaging.destination.name": subjects.service(kind, name, op),
    }  # fmt: skip
    if kind == "agent":
        return {**sent, "gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": name, "remit.skill": op}
    return {
        **sent, "gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": op, "mcp.method.name": "tools/call",
        "remit.server": name,
    }  # fmt: skip


def _budget(prefix: str, budget: Budget) -> dict[str, Value]:
    return {
        f"{prefix}.usd_micros": budget.usd_micros,
        f"{prefix}.tokens": budget.tokens,
        f"{prefix}.calls": budget.calls,
    }


def _links(traceparent: str | None) -> tuple[Link, ...]:
    match = _TRACEPARENT.fullmatch(traceparent or "")
    if match is None or set(match[1]) == {"0"} or set(match[2]) == {"0"}:
        return ()
    return (Link(match[1], match[2], "caller", int(match[3], 16)),)
