"""What each route of ``/api`` is for, for its OpenAPI description: read by programs, and by people who write them."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from remit_broker.core.accounts import KINDS
from remit_broker.core.listing import ChainFilter, LogFilter
from remit_broker.core.what_if import WhatIf
from remit_broker.edges.http.approvals import STATES, Say
from remit_broker.edges.http.bodies import Delegate, NewAgent, Revocation
from remit_broker.edges.http.openapi import Told
from remit_broker.edges.http.pins import Acceptance
from remit_broker.edges.http.policy import Allow, Observe, Withdraw
from remit_broker.edges.http.revocations import Stop
from remit_broker.edges.http.secrets import NewSecret, Place
from remit_broker.edges.http.vault import Person


class BudgetQuery(msgspec.Struct, kw_only=True):
    """``GET /api/budgets``: ``name`` may be a pattern."""

    kind: Annotated[str, msgspec.Meta(pattern=f"^({'|'.join(KINDS)})$")] | None = None
    name: str | None = None


class ApprovalQuery(msgspec.Struct, kw_only=True):
    """``GET /api/approvals``."""

    state: Annotated[str, msgspec.Meta(pattern=f"^({'|'.join(STATES)})$")] = "waiting"


class EvidenceQuery(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``GET /api/chains/{txn}/evidence``: ``payloads`` is ``all``, or hops separated by commas.

    ``withhold`` names groups of personal fields that are left out (``user``, ``claims``, ``people``, ``reasons``, ``all``, or
    ``nothing``), ``disclose`` single fields that are shown all the same, as in ``0.user``.
    """

    payloads: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    withhold: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    disclose: Annotated[str, msgspec.Meta(min_length=1)] | None = None


class DecisionQuery(msgspec.Struct, kw_only=True):
    """``GET /api/policy/decisions``: ``after`` is the ``next`` of the page before."""

    kind: Literal["opened", "refused"] = "opened"
    after: Annotated[int, msgspec.Meta(ge=0, lt=10**15)] = 0


TOLD: Final[dict[str, Told]] = {
    "POST /api/grants": Told(
        "Open a task for a user and give its first agent the root grant.", ("txn", "grant", "exp"), Delegate
    ),
    "GET /api/status": Told("What runs and how, as the processes say it.", ("version", "tenant", "published")),
    "GET /api/agents": Told("Everybody who may connect, and what they serve.", ("agents",)),
    "POST /api/agents": Told("Register an agent or a server by its public nkey.", ("agent", "kind"), NewAgent),
    "DELETE /api/agents/{name}": Told("Forget an agent or a server.", ("removed",)),
    "GET /api/servers": Told("MCP servers, their state, their tools, what waits to be accepted.", ("servers",)),
    "POST /api/servers/reload": Told("Read the file of servers again.", ("servers",)),
    "GET /api/servers/{name}/changes": Told(
        "Definitions that wait to be accepted, and what changed.", ("server", "waiting")
    ),
    "POST /api/servers/{name}/accept": Told("Accept the definitions that were looked at.", ("accepted",), Acceptance),
    "GET /api/budgets": Told(
        "Accounts that have a cap: what is spent, held and left.", ("budgets",), query=BudgetQuery
    ),
    "GET /api/chains": Told("A page of tasks, newest first.", ("chains", "cursor"), query=ChainFilter),
    "GET /api/chains/{txn}": Told("Records and refusals of one task.", ("txn", "records", "refusals")),
    "GET /api/chains/{txn}/evidence": Told(
        "The evidence of one task, which verifies offline; with payloads, which takes an administrator, what was sent and answered.",
        ("v", "txn", "records", "grants"),
        query=EvidenceQuery,
    ),
    "POST /api/chains/{txn}/close": Told("Close a task.", ("txn", "state", "spent")),
    "GET /api/checkpoint": Told("The newest signed checkpoint of the log."),
    "GET /api/approvals": Told("Requests for approvals, newest first.", ("approvals",), query=ApprovalQuery),
    "GET /api/approvals/{id}": Told("One request, with what would be sent.", ("id", "txn", "state", "votes")),
    "POST /api/approvals/{id}": Told("Say something to a request.", ("id", "txn", "state", "votes"), Say),
    "GET /api/revocations": Told("What is stopped, and all that ever was.", ("revocations", "history", "chain")),
    "POST /api/revocations": Told(
        "Stop a grant, a task, an agent, a user, tools, a tenant or everything.", (), Revocation
    ),
    "POST /api/revocations/reinstate": Told("Let something go on.", ("reinstated",), Stop),
    "GET /api/find/{prefix}": Told("Tasks and hops whose id begins so.", ("found", "near")),
    "GET /api/records": Told(
        "Every record and refusal after a place, a page at a time: what exports read.",
        ("records", "cursor", "more"),
        query=LogFilter,
    ),
    "GET /api/records/{hop}": Told(
        "The records of one hop, or of one refused call.", ("txn", "hop", "records", "asked")
    ),
    "GET /api/secrets": Told("Secrets of users and services at servers, without their values.", ("secrets",)),
    "POST /api/secrets": Told("Set a secret.", ("server", "user", "service", "at"), NewSecret),
    "POST /api/secrets/remove": Told("Forget a secret.", ("server", "user", "service"), Place),
    "POST /api/secrets/connect": Told("Where a user logs in at a server.", ("server", "user", "url"), Place),
    "GET /api/vault": Told(
        "What is kept of contents for how long, who is held, and who was erased.", ("on", "keeps", "holds", "erased")
    ),
    "GET /api/vault/{hop}": Told(
        "What was sent to a hop and what it answered, as far as it is kept.", ("txn", "hop", "user", "contents")
    ),
    "POST /api/vault/erase": Told(
        "Destroy the key of a user and what is kept under it.", ("user", "state", "key", "messages"), Person
    ),
    "POST /api/vault/hold": Told("Nothing of a user is erased or forgotten from now on.", ("user", "state"), Person),
    "POST /api/vault/release": Told("Lift a hold.", ("user", "state"), Person),
    "GET /api/accesses": Told("Who read the records, in a chain of sealed records.", ("accesses", "chain")),
    "POST /api/policy/simulate": Told("What policy would decide.", ("outcome", "rules"), WhatIf),
    "GET /api/policy/decisions": Told(
        "What was decided, with the question.", ("decisions", "next"), query=DecisionQuery
    ),
    "GET /api/policy/rulings": Told("What is only observed, and exceptions.", ("observed", "exceptions")),
    "POST /api/policy/observe": Told("Only record what a policy, or policies about a server, refuse.", (), Observe),
    "POST /api/policy/enforce": Told("Enforce them again.", (), Observe),
    "POST /api/policy/allow": Told("An exception, made of a refused call.", (), Allow),
    "POST /api/policy/withdraw": Told("End an exception.", (), Withdraw),
}
