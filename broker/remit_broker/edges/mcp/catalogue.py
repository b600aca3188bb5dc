"""What a client is shown of what is attached, and which resource a name that it says is."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from remit_broker.core.policy import PolicyRequest
from remit_broker.core.registry import OWN_TASKS, TASKS, Attachment, Definition, Target
from remit_broker.core.tool_names import Named, joined
from remit_broker.edges.mcp.access import Holder, Who
from remit_broker.edges.mcp.jsonrpc import INVALID_PARAMS, Fault
from remit_broker.edges.mcp.tasks import Rules
from remit_broker.hop.narrow import exactly
from remit_broker.operator_ports import Directory
from remit_broker.ports import Ports
from remit_schemas.base64url import decode, encode
from remit_schemas.names import Resource
from remit_schemas.scope import Scope

PAGE: Final = 250
AT_ONCE: Final = 25
"""Tools that are decided on before others have their turn: each may take a tenth of a millisecond, and a new one ten times that."""
"""Entries of one page of a listing."""
_NOBODY: Final[tuple[str, ...]] = ()


class Shown(NamedTuple):
    """One tool under the name that this client knows it by."""

    name: str
    resource: Resource
    definition: Definition


class Catalogue:
    """What one client sees: of one server, or of all."""

    searches = False
    """Whether the client sees three tools that search, describe and call, in the place of all."""

    def __init__(self, server: str | None, who: Who, rules: Rules, ports: Ports, directory: Directory) -> None:
        self._server, self._who, self._rules, self._ports, self._directory = server, who, rules, ports, directory

    def servers(self) -> list[Attachment]:
        """The servers of this view that are attached, by name, without what of them waits to be accepted."""
        return [shown for one in self._attached() if (shown := self._directory.presented(one.name)) is not None]

    def _attached(self) -> list[Attachment]:
        """All of them: a name that waits is known, and the pipeline says that it waits."""
        names = [p.name for p in self._directory.principals() if p.kind == "mcp"]
        wanted = names if self._server is None else [name for name in names if name == self._server]
        return [found for name in wanted if (found := self._directory.attachment(name)) is not None]

    async def tools(self) -> list[Shown]:
        """Every tool that may be seen. Of two that would have one name here, neither is: :meth:`collisions` says which.

        INVARIANT: a server with thousands of tools keeps nobody waiting while they are decided on
        (test_a_listing_of_many_tools_lets_others_go_on_meanwhile).

        INVARIANT: nobody is shown what policy, grant or pin would refuse them anyhow
        (test_a_listing_shows_what_grant_and_policy_permit_and_no_more).
        """
        found = []
        for count, one in enumerate(self._all(), 1):
            if count % AT_ONCE == 0:
                await asyncio.sleep(0)
            if self._visible(one.resource):
                found.append(one)
        if self._server is not None:
            return found
        shared = self._directory.tool_names().shared()
        return [shown for shown in found if shown.name not in shared]

    def collisions(self) -> dict[str, list[str]]:
        """Names that several tools would have, with those of them that may be seen; such tools are left out, and not called."""
        if self._server is not None:
            return {}
        return {name: seen for name in self._directory.tool_names().shared() if (seen := self.sharing(name))}

    def sharing(self, name: str) -> list[str]:
        """The tools with a name that several have, as far as they may be seen."""
        same = self._directory.tool_names().shared().get(name, []) if self._server is None else []
        return [str(one) for named in same if self._visible(one := _tool(named))]

    def resolve(self, name: str) -> Resource | None:
        """The tool that a client means; None where this view has none of that name. Whether it may be called is for the pipeline."""
        if self._server is not None:
            return Resource("mcp", self._server, name)
        found = self._directory.tool_names().only(name)
        return _tool(found) if found is not None else None

    def schema(self, name: str) -> dict[str, Any] | None:
        """The schema of the arguments of a tool; None where there is none of that name."""
        return next((one.definition.input_schema for one in self._all() if one.name == name), None)

    def has_tasks(self) -> bool:
        """Whether a server of this view works on calls in the background."""
        return any({TASKS, OWN_TASKS} & set(one.offers.get("capabilities", [])) for one in self._attached())

    def task_support(self, resource: Resource) -> str:
        """Whether a tool can be worked on in the background: ``optional``, ``required`` or empty, which is not at all."""
        attachment = self._directory.attachment(resource.name)
        can = attachment.offers.get("capabilities", []) if attachment is not None else []
        if attachment is None or TASKS not in can:
            return "optional" if OWN_TASKS in can else ""
        found = next((one for one in attachment.definitions if one.op == resource.op), None)
        return str(found.execution.get("taskSupport", "")) if found is not None else ""

    def offered(self, what: str) -> list[dict[str, Any]]:
        """The ``resources``, ``templates`` or ``prompts`` of this view, of servers whose own operation may be seen."""
        op = "$prompt" if what == "prompts" else "$resource"
        found, shared = [], self._directory.prompt_names().shared()
        for attachment in self.servers():
            if self._visible(Resource("mcp", attachment.name, op)):
                for one in attachment.offers.get(what, []):
                    if what != "prompts" or self._server is not None:
                        found.append(one)
                    elif (name := joined(attachment.name, str(one.get("name")))) not in shared:
                        found.append({**one, "name": name})
        return found

    def prompt(self, name: str) -> tuple[str, str] | None:
        """The server of a prompt and its own name there; None where this view has none, or several, of that name."""
        if self._server is not None:
            return self._server, name
        found = self._directory.prompt_names().only(name)
        return (found.server, found.name) if found is not None else None

    def server_of_uri(self, uri: str) -> str | None:
        """The server that has a resource, or else a template that begins as the URI does; None where none or several have."""
        if self._server is not None:
            return self._server
        exact = {
            a.name for a in self._attached() if any(one.get("uri") == uri for one in a.offers.get("resources", []))
        }
        if len(exact) == 1:
            return exact.pop()
        near = {
            a.name
            for a in self._attached()
            for one in a.offers.get("templates", [])
            if (head := str(one.get("uriTemplate", "")).partition("{")[0]) and uri.startswith(head)
        }
        return near.pop() if not exact and len(near) == 1 else None

    def _all(self) -> Iterator[Shown]:
        for attachment in self._attached():
            for definition in attachment.definitions:
                if not definition.op.startswith("$"):
                    name = definition.op if self._server is not None else joined(attachment.name, definition.op)
                    yield Shown(name, Resource("mcp", attachment.name, definition.op), definition)

    def _visible(self, resource: Resource) -> bool:
        target = self._ports.registry.target(resource)
        if target is None or target.quarantined:
            return False
        held = self._who.grant.scope if isinstance(self._who, Holder) else Scope.of(self._rules.scopes)
        if not held & exactly(resource):
            return False
        user = self._who.grant.claims.sub if isinstance(self._who, Holder) else self._who.name
        if self._ports.revocations.check((target.callee,), user, resource):
            return False
        return self._ports.policy.decide(self._question(resource, target, user)).allowed

    def _question(self, resource: Resource, target: Target, user: str) -> PolicyRequest:
        who, ports = self._who, self._ports
        actors, roles, groups = (*_NOBODY, self._rules.agent), _NOBODY, _NOBODY
        depth, left, client = 1, self._rules.budget, ""
        if isinstance(who, Holder):
            claims = who.grant.claims
            actors, depth, left = who.grant.chain, claims.depth + 1, claims.budget
        elif who.identity is not None:
            roles, groups, client = who.identity.roles, who.identity.groups, who.identity.client
        tiers = [known.tier if (known := ports.registry.principal(name)) else "client" for name in actors]
        return PolicyRequest(
            action="list", tenant=who.tenant, user=user, roles=roles, groups=groups, client=client, caller=actors[0],
            caller_tier=tiers[0], resource=resource, annotations=target.annotations, target_tier=target.tier, depth=depth,
            actors=actors, tiers=tuple(sorted(set(tiers))), tool_groups=target.groups, environment=ports.environment,
            left=left, now=int(ports.clock.now()),
        )  # fmt: skip


def _tool(named: Named) -> Resource:
    return Resource("mcp", named.server, named.name)


def described(shown: Shown) -> dict[str, Any]:
    """A tool as ``tools/list`` has it."""
    definition = shown.definition
    told: dict[str, Any] = {"name": shown.name}
    if definition.title:
        told["title"] = definition.title
    if definition.description:
        told["description"] = definition.description
    told["inputSchema"] = definition.input_schema
    if definition.output_schema is not None:
        told["outputSchema"] = definition.output_schema
    if definition.annotations:
        told["annotations"] = definition.annotations
    return told


class Pages:
    """Cursors that only whoever got them can use: a place in a listing, sealed with whose it is."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def page(self, what: str, whose: Sequence[str], entries: list[Any], cursor: Any) -> tuple[list[Any], str | None]:
        """The entries from ``cursor`` on (None: the first ones), and the cursor of the next page. Raises a fault for a foreign one.

        INVARIANT: a cursor is of use to nobody else, and for nothing else (test_a_foreign_cursor_is_refused).
        """
        at = 0 if cursor is None else self._place(what, whose, cursor)
        after = at + PAGE
        return entries[at:after], self._seal(what, whose, after) if after < len(entries) else None

    def _seal(self, what: str, whose: Sequence[str], at: int) -> str:
        return f"{at}.{encode(self._mark(what, whose, at))}"

    def _mark(self, what: str, whose: Sequence[str], at: int) -> bytes:
        return hmac.digest(self._key, "\0".join((what, *whose, str(at))).encode(), "sha256")[:16]

    def _place(self, what: str, whose: Sequence[str], cursor: Any) -> int:
        place, _, mark = cursor.partition(".") if isinstance(cursor, str) and len(cursor) < 64 else ("", "", "")
        try:
            if (
                place.isascii()
                and place.isdigit()
                and hmac.compare_digest(decode(mark.encode()), self._mark(what, whose, int(place)))
            ):
                return int(place)
        except ValueError:
            pass
        raise Fault(INVALID_PARAMS, "this cursor is not one of this listing: begin again without one")
