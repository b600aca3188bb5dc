"""``credentials.get``: what the server of a hop is shown of its user, asked for with the very grant of that hop."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from remit_broker.hop.hop import Hop
from remit_broker.hop.revoked import nothing_stops
from remit_broker.hop.verify import holder
from remit_broker.ports import Ports
from remit_schemas.errors import Code, refusal
from remit_schemas.grant import parse
from remit_schemas.names import Resource, parse_resource


class Shows(Protocol):
    """What MCP servers are shown."""

    def kind(self, server: str) -> str:
        """How a server is shown who it is called for."""

    async def listing(self, tenant: str, server: str) -> dict[str, str]:
        """The headers with which a server is asked what it serves, for nobody in particular."""

    def variable(self, server: str) -> str:
        """The environment variable that a server finds its credential in; empty where it is sent one in a header."""

    async def headers(self, at: tuple[str, str, str, str], grant: str) -> dict[str, str]:
        """The headers, or the variable, for ``at``: tenant, user, server and txn. Refuses what there are none for."""


async def shown(hop: Hop, ports: Ports, shows: Shows) -> dict[str, Any]:
    """``{"headers"}``, and ``{"variables"}`` for a process of the user's own. Refuses GRANT_… as every call does, OUT_OF_SCOPE for
    what is no call of the caller's own tool.

    INVARIANT: a server is shown the credential of a user while a hop of its own is open for that one, and at no other time
    (test_a_server_gets_no_credential_but_for_its_own_open_hop).
    """
    if not hop.request.grant:
        # The server itself asks what it is to be listed with: that is its own service account, and nobody's.
        return {"headers": await shows.listing(hop.ask.tenant, hop.ask.caller)}
    claims = parse(hop.request.grant).claims
    hop = await holder(hop.with_(ask=msgspec.structs.replace(hop.ask, txn=claims.txn)), ports)
    called: Resource | None = parse_resource(hop.above.resource) if hop.above.resource else None
    if called is None or called.kind != "mcp" or called.name != hop.ask.caller:
        raise refusal(
            Code.OUT_OF_SCOPE, "credentials are shown to the MCP server that a call is for", rule="credentials.server",
            ask="send the grant of the dispatch",
        )  # fmt: skip
    nothing_stops(hop.with_(ask=msgspec.structs.replace(hop.ask, resource=called)), ports)
    at = (hop.ask.tenant, hop.held.claims.sub, called.name, claims.txn)
    found = await shows.headers(at, hop.request.grant)
    return {"headers": {}, "variables": found} if shows.variable(called.name) else {"headers": found}
