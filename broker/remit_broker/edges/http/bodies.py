"""The bodies of ``/api`` that are of no one part of it."""

from __future__ import annotations

from typing import Annotated

import msgspec

from remit_broker.edges.http.revocations import Stop
from remit_schemas.budget import Budget
from remit_schemas.claims import ANY_LABEL
from remit_schemas.scope import Detail


class Delegate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``POST /api/grants``: open a txn for a user. ``ttl`` is in seconds, ``labels`` are those of data that may reach the agent.

    ``token`` is the user's own. Without one an operator names the ``user``, an administrator their ``roles`` and ``groups`` too;
    with none of these it is the caller, where an issuer proved who that is.
    """

    agent: str
    scopes: tuple[Detail, ...]
    budget: Budget
    user: str = ""
    token: str = ""
    roles: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    ttl: int = 600
    max_depth: Annotated[int, msgspec.Meta(ge=0, le=16)] = 8
    labels: tuple[str, ...] = (ANY_LABEL,)


class NewAgent(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``POST /api/agents``: ``nkey`` is the public one; the seed never leaves the machine that drew it."""

    name: str
    nkey: str
    kind: str = "agent"
    tier: str = "standard"


class Revocation(Stop, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``POST /api/revocations``: one of ``grant`` (a jti), ``txn``, and what else can be stopped."""

    grant: str | None = None
    txn: str | None = None
