"""``/api``: what operators and the command line do. Every handler authenticates first and answers in JSON."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from remit_broker.core import nkey
from remit_broker.core.accounts import KINDS
from remit_broker.core.issuers import Ability
from remit_broker.core.listing import ChainFilter
from remit_broker.core.near import meant
from remit_broker.core.registry import Principal
from remit_broker.core.times import rfc3339, utc
from remit_broker.edges.http import evidence, log, policy, secrets, vault
from remit_broker.edges.http.approvals import Approvals, Say, approver
from remit_broker.edges.http.bodies import Delegate, NewAgent, Revocation
from remit_broker.edges.http.changed import accepted, registered, removed
from remit_broker.edges.http.desk import PARAMETER, Call, Desk, desk_for
from remit_broker.edges.http.guard import Handler, answering, body_of, typed
from remit_broker.edges.http.log import AUDITED
from remit_broker.edges.http.openapi import PATH as OPENAPI
from remit_broker.edges.http.openapi import Offered, document
from remit_broker.edges.http.operators import Operator, lacking, require
from remit_broker.edges.http.pins import Acceptance, changes
from remit_broker.edges.http.revocations import Stop, unknown_tenant
from remit_broker.edges.http.told import TOLD
from remit_broker.edges.http.turned_away import let_in, noticing
from remit_broker.hop.begin import Wish, open_as, open_for
from remit_broker.hop.revoked import withheld
from remit_broker.hop.txn import Delegation, close_txn, open_txn, revoke
from remit_broker.operator_ports import Index
from remit_schemas.errors import Code, Refusal, refusal
from remit_schemas.names import DEFAULT_TENANT, is_principal, is_txn
from remit_schemas.scope import Scope

Evidence = Callable[[str, str], Awaitable[dict[str, Any]]]


class Api:
    """The handlers, over what the app wired for each tenant."""

    def __init__(self, desks: Iterable[Desk], index: Index, operator: Operator, extras: Mapping[str, Any]) -> None:
        self._desks = {desk.tenant: desk for desk in desks}
        self._index, self._operator = index, operator
        self._published: Mapping[str, Any] = extras["published"]
        self._evidence: Evidence = extras["evidence"]
        self._checkpoints: Callable[[int | None], Awaitable[dict[str, Any]]] = extras["checkpoints"]
        self._describe: Callable[[str | None], Awaitable[dict[str, Any]]] = extras["status"]
        self._caught_up: Callable[[], Awaitable[None]] = extras["caught_up"]
        self._budgets: Callable[[str], Awaitable[list[dict[str, Any]]]] = extras["budgets"]
        self._fault: Callable[[str, BaseException], None] = extras["fault"]
        self._approvals = Approvals(index)

    def routes(self) -> list[Route]:
        """All routes under ``/api``."""
        table: list[tuple[str, str, Ability | None, Callable[[Request, Call], Awaitable[Any]]]] = [
            ("POST", "/api/grants", None, self._grant),
            ("GET", "/api/status", "read", self._status),
            ("GET", "/api/agents", "read", self._agents),
            ("POST", "/api/agents", "operate", self._add_agent),
            ("DELETE", "/api/agents/{name}", "operate", self._remove_agent),
            ("GET", "/api/servers", "read", self._list_servers),
            ("POST", "/api/servers/reload", "operate", self._reload_servers),
            ("GET", "/api/servers/{name}/changes", "read", self._changes),
            ("POST", "/api/servers/{name}/accept", "operate", self._accept),
            ("GET", "/api/budgets", "read", self._list_budgets),
            ("GET", "/api/chains", "read", self._chains),
            ("GET", "/api/chains/{txn}", "read", self._chain),
            ("GET", "/api/chains/{txn}/evidence", "read", self._export),
            ("POST", "/api/chains/{txn}/close", None, self._close),
            ("GET", "/api/checkpoint", "read", self._checkpoint),
            ("GET", "/api/approvals", "read", self._list_approvals),
            ("GET", "/api/approvals/{id}", "read", self._approval),
            ("POST", "/api/approvals/{id}", "approve", self._decide),
            ("GET", "/api/revocations", "read", self._revocations),
            ("POST", "/api/revocations", "operate", self._revoke),
            ("POST", "/api/revocations/reinstate", "operate", self._reinstate),
            *log.ROUTES,
            *policy.ROUTES,
            *secrets.ROUTES,
            *vault.ROUTES,
        ]
        described = document([Offered(verb, path, need) for verb, path, need, _ in table], TOLD)

        async def openapi(request: Request, at: Call) -> Any:
            return described

        table.append(("GET", OPENAPI, "read", openapi))
        fault = self._fault
        return [
            Route(at, answering(self._known(do, need, (verb, at)), fault), methods=[verb])
            for verb, at, need, do in table
        ]

    def _known(
        self, do: Callable[[Request, Call], Awaitable[Any]], ability: Ability | None, at: tuple[str, str]
    ) -> Handler:
        """``do`` at a verb and a path for callers with ``ability``; with None it asks for itself."""
        verb, path = at
        audited = AUDITED.get(path, "") if verb == "GET" else ""
        reads = do in (
            self._grant,
            self._add_agent,
            self._accept,
            self._revoke,
            self._reinstate,
            self._decide,
            *policy.READS,
            *secrets.READS,
            *vault.READS,
        )

        async def handler(request: Request) -> Response:
            caller = await let_in(request, path, ability, self._operator, self._desks)
            call = Call(caller, desk_for(self._desks, request, caller))
            # INVARIANT: a user who is revoked is no operator either (test_a_user_who_is_revoked_is_no_operator).
            revocations = call.desk.ports.revocations
            if caller.identity is not None and (found := revocations.check((), caller.identity.user)):
                raise withheld(found)
            if not reads:
                await _no_body(request)
            if audited:
                if audited == "evidence" and evidence.wanted(request).payloads is not None:
                    require(caller, "administer")
                await call.desk.log.noted(call.who, call.tenant, self._read(audited, request))
            async with noticing(path, call):
                return JSONResponse(msgspec.to_builtins(await do(request, call)))

        return handler

    def _read(self, what: str, request: Request) -> str:
        """What is read, as it is recorded."""
        if what == "evidence":
            return f"evidence of {self._txn(request)}{evidence.named(evidence.wanted(request))}"
        of = {"contents": "hop", "approval": "id"}.get(what)
        # An id may be anything that a caller writes.
        return f"{what} of {str(request.path_params[of])[:64]}" if of else what

    async def _grant(self, request: Request, at: Call) -> Any:
        wish, caller = await typed(request, Delegate), at.caller
        if wish.token and (wish.user or wish.roles or wish.groups):
            raise refusal(
                Code.MALFORMED,
                "a token says who the user is",
                rule="grants.user",
                ask="leave out user, roles and groups",
            )
        if wish.token or (caller.identity is not None and not wish.user):
            return await self._for_proved(wish, at)
        # INVARIANT: only an operator acts for a user without that one's token, only an administrator says which roles that one has
        # (test_a_user_opens_tasks_for_nobody_else).
        require(caller, "administer" if wish.roles or wish.groups else "operate")
        return await open_txn(
            Delegation(
                tenant=at.tenant,
                roles=wish.roles,
                groups=wish.groups,
                user=wish.user,
                agent=wish.agent,
                scope=Scope.of(wish.scopes),
                budget=wish.budget,
                ttl=wish.ttl,
                auth=at.who,
                max_depth=wish.max_depth,
                labels=wish.labels,
            ),
            at.desk.ports,
        )

    async def _for_proved(self, wish: Delegate, at: Call) -> Any:
        """For the user of the token in the body, else for the caller."""
        about = Wish(
            token=wish.token, scopes=wish.scopes, budget=wish.budget, ttl=wish.ttl, max_depth=wish.max_depth,
            labels=wish.labels,
        )  # fmt: skip
        if wish.token:
            return await open_for(about, wish.agent, at.tenant, at.desk.ports)
        if wish.roles or wish.groups or at.caller.identity is None:
            require(at.caller, "administer")
            raise refusal(
                Code.MALFORMED, "roles and groups without a user are nobody's", rule="grants.user",
                ask="name the user as well; your own are those that your issuer says",
            )  # fmt: skip
        return await open_as(at.caller.identity, about, wish.agent, at.tenant, at.desk.ports)

    async def _status(self, request: Request, at: Call) -> Any:
        return {**await self._describe(self._bound(at)), "tenant": at.tenant, "published": self._published}

    async def _list_budgets(self, request: Request, at: Call) -> Any:
        wanted = dict(request.query_params)
        if set(wanted) - {"kind", "name", PARAMETER} or wanted.get("kind", KINDS[0]) not in KINDS:
            raise refusal(
                Code.MALFORMED, "budgets are asked for by kind and name", rule="api.query",
                ask=f"kind is one of {', '.join(KINDS)}; name may be a pattern",
            )  # fmt: skip
        kind, name = wanted.get("kind"), wanted.get("name", "*")
        rows = await self._budgets(at.tenant)
        # A pattern names itself too: tools that share an account are shown under it.
        fits = [
            row
            for row in rows
            if kind in (None, row["kind"]) and (row["name"] == name or fnmatchcase(row["name"], name))
        ]
        return {"budgets": fits}

    async def _agents(self, request: Request, at: Call) -> Any:
        return {"agents": [_described(p, at) for p in at.desk.directory.principals()]}

    async def _add_agent(self, request: Request, at: Call) -> Any:
        new = await typed(request, NewAgent)
        if not is_principal(new.name):
            raise refusal(
                Code.MALFORMED, f"{new.name!r} cannot name an agent", rule="agents.name",
                ask="use [a-z0-9][a-z0-9_-]*, at most 63 characters, not remit, new or broker",
            )  # fmt: skip
        if not nkey.is_public("U", new.nkey):
            raise refusal(
                Code.MALFORMED, "that is not the public key of a NATS user", rule="agents.nkey",
                ask="draw a user nkey and send its public half: 56 characters that begin with U",
            )  # fmt: skip
        if new.kind not in ("agent", "mcp") or not is_principal(new.tier):
            raise refusal(Code.MALFORMED, "kind is agent or mcp, tier a plain name", rule="agents.kind", ask="see docs")
        principal = Principal(
            name=new.name,
            kind="mcp" if new.kind == "mcp" else "agent",
            nkey=new.nkey,
            tenant=at.tenant,
            tier=new.tier,
            created=rfc3339(at.desk.ports.clock.now()),
        )
        return {"agent": new.name, "kind": new.kind, "record": await registered(principal, at)}

    async def _remove_agent(self, request: Request, at: Call) -> Any:
        name = request.path_params["name"]
        return {"removed": name, "record": await removed(name, at)}

    async def _list_servers(self, request: Request, at: Call) -> Any:
        managed = {server["name"]: server for server in at.desk.servers.servers()}
        listed = [
            {"state": "remote", **_described(p, at), **managed.pop(p.name, {}), **_quarantined(p.name, at)}
            for p in at.desk.directory.principals()
            if p.kind == "mcp"
        ]
        return {"servers": [*listed, *managed.values()]}

    async def _reload_servers(self, request: Request, at: Call) -> Any:
        # No API takes a command: what runs comes from a file on this machine, and this only says that it changed.
        await at.desk.servers.reload_servers()
        return {"servers": at.desk.servers.servers()}

    async def _changes(self, request: Request, at: Call) -> Any:
        return changes(request.path_params["name"], at.desk.directory)

    async def _accept(self, request: Request, at: Call) -> Any:
        return await accepted(request.path_params["name"], await typed(request, Acceptance), at)

    async def _chains(self, request: Request, at: Call) -> Any:
        raw: dict[str, Any] = {key: value for key, value in request.query_params.items() if key != PARAMETER}
        try:
            wanted = msgspec.convert(raw, ChainFilter, strict=False)
            times = {key: utc(value) for key in ("since", "until") if (value := getattr(wanted, key)) is not None}
        except ValueError as error:  # msgspec.ValidationError is one
            raise refusal(Code.MALFORMED, str(error), rule="api.query", ask="see remit chains --help") from None
        await self._caught_up()
        page = await self._index.chains(at.tenant, msgspec.structs.replace(wanted, **times))
        return {"chains": page.rows, "cursor": page.cursor}

    async def _chain(self, request: Request, at: Call) -> Any:
        txn = self._txn(request)
        await self._caught_up()
        entries = await self._index.chain(at.tenant, txn)
        if not entries:
            raise await self._no_txn(txn, at)
        refused = await self._index.refusals(at.tenant, txn)
        return {"txn": txn, "records": [entry["record"] for entry in entries], "refusals": refused}

    async def _export(self, request: Request, at: Call) -> Any:
        found = await self._evidence(at.tenant, self._txn(request))
        return await evidence.shown(found, evidence.wanted(request), at)

    async def _checkpoint(self, request: Request, at: Call) -> Any:
        # The log is one for all tenants: how many records it has is told to whoever may read, and nothing of them.
        wanted = {key: value for key, value in request.query_params.items() if key != PARAMETER}
        since = wanted.pop("since", None)
        if wanted or (since is not None and not (since.isascii() and since.isdigit() and len(since) < 16)):
            raise refusal(
                Code.MALFORMED, "a checkpoint is asked for by since", rule="api.query",
                ask="since is the number of records of a checkpoint that you kept",
            )  # fmt: skip
        return await self._checkpoints(None if since is None else int(since))

    async def _close(self, request: Request, at: Call) -> Any:
        await self._own(self._txn(request), at)
        work = close_txn(at.tenant, self._txn(request), at.who, "closed", at.desk.ports)
        fold = await self._existing(work, self._txn(request), at)
        return {"txn": fold.txn, "state": fold.state, "spent": fold.nodes[fold.root].spent}

    async def _own(self, txn: str, at: Call) -> None:
        """Refuses POLICY_DENIED to whoever is neither an operator nor the user of that very task, be there one or not."""
        if "operate" in at.caller.abilities:
            return
        proved = at.caller.identity
        try:
            fold = await at.desk.ports.ledger.newest(at.tenant, txn)
        except Refusal as no:
            # Whoever cannot be told whether it is theirs is told that, and not that they lack a role.
            if no.body.rule != "ledger.unknown-txn":
                raise
            fold = None
        if fold is None or proved is None or fold.user != proved.user:
            raise lacking(at.caller, "operate")

    async def _revoke(self, request: Request, at: Call) -> Any:
        wish = await typed(request, Revocation)
        others = wish.all or not wish.agent is wish.user is wish.tool is wish.tenant is None
        if (wish.grant is not None) + (wish.txn is not None) + others != 1:
            raise refusal(
                Code.MALFORMED, "name exactly one thing to revoke", rule="revoke.what",
                ask="one of grant, txn, agent, user, tool, tenant and all",
            )  # fmt: skip
        if others:
            await self._caught_up()
            return await self._stopping(wish, at).kill.revoke(wish, at.who)
        jti = wish.grant
        if wish.txn is not None:
            fold = await self._existing(at.desk.ports.ledger.fold(at.tenant, wish.txn), wish.txn, at)
            jti = f"{fold.txn}.{fold.root}.1"
        work = revoke(at.tenant, jti or "", at.who, wish.why, at.desk.ports)
        fold = await self._existing(work, wish.txn or jti or "", at)
        await at.desk.kill.announce(jti or "")
        return {"txn": fold.txn, "revoked": jti, "seq": fold.seq}

    async def _reinstate(self, request: Request, at: Call) -> Any:
        wish = await typed(request, Stop)
        return await self._stopping(wish, at).kill.reinstate(wish, at.who)

    async def _list_approvals(self, request: Request, at: Call) -> Any:
        await self._caught_up()
        state = request.query_params.get("state", "waiting")
        return await self._approvals.listed(at.tenant, state, at.desk.ports)

    async def _approval(self, request: Request, at: Call) -> Any:
        await self._caught_up()
        return await self._approvals.shown(at.tenant, str(request.path_params["id"]), at.desk.ports)

    async def _decide(self, request: Request, at: Call) -> Any:
        said = await typed(request, Say)
        await self._caught_up()
        by = approver(at.caller, at.tenant)
        return await self._approvals.decided(str(request.path_params["id"]), said, by, at.desk.ports)

    def _bound(self, at: Call) -> str | None:
        """The tenant of a caller who must not learn of others, or stop them. Where there is one alone, there are none."""
        return at.caller.tenant if len(self._desks) > 1 else None

    def _stopping(self, wish: Stop, at: Call) -> Desk:
        """The desk at which something is stopped or goes on. Refuses UNKNOWN_TARGET and, for what is not one tenant's, OUT_OF_SCOPE.

        INVARIANT: whoever belongs to one tenant stops no other and not everything
        (test_an_operator_of_one_tenant_stops_no_other).
        """
        if wish.all and self._bound(at) is not None and not at.caller.everything:
            raise refusal(
                Code.OUT_OF_SCOPE, "everything is more than your tenant", rule="revoke.all",
                ask=f"revoke the tenant {at.caller.tenant}, or have somebody do it whom http.stop_all names",
            )  # fmt: skip
        if wish.all:
            # What stops everything stands in one place, whoever says it (test_who_is_named_for_it_stops_all_tenants).
            return self._desks[DEFAULT_TENANT]
        if wish.tenant is None:
            return at.desk
        if wish.tenant not in self._desks or at.caller.tenant not in (None, wish.tenant):
            near = sorted(self._desks) if at.caller.tenant is None else [at.caller.tenant]
            raise unknown_tenant(wish.tenant, near)
        return self._desks[wish.tenant]

    async def _revocations(self, request: Request, at: Call) -> Any:
        return {"revocations": at.desk.kill.in_force(), **await at.desk.kill.history()}

    def _txn(self, request: Request) -> str:
        txn = str(request.path_params["txn"])
        if not is_txn(txn):
            raise refusal(Code.MALFORMED, f"{txn[:64]!r} is not a txn", rule="api.txn", ask="32 lower-case hex digits")
        return txn

    async def _no_txn(self, txn: str, at: Call) -> Refusal:
        await self._caught_up()
        ask = meant(await self._index.near(at.tenant, txn[:128]), "remit chains lists them")
        return refusal(Code.UNKNOWN_TARGET, f"no txn {txn[:128]}", rule="api.unknown-txn", ask=ask)

    async def _existing(self, work: Awaitable[Any], txn: str, at: Call) -> Any:
        try:
            return await work
        except Refusal as no:
            if no.body.rule == "ledger.unknown-txn":
                raise await self._no_txn(txn, at) from None
            raise


def _described(principal: Principal, at: Call) -> dict[str, Any]:
    attachment = at.desk.directory.attachment(principal.name)
    served = [d.op for d in attachment.definitions if not d.op.startswith("$")] if attachment else []
    return {**msgspec.to_builtins(principal), "serves": served}


def _quarantined(name: str, at: Call) -> dict[str, Any]:
    waiting, shared = _waiting(name, at), at.desk.directory.tool_names().shared()
    collisions = {
        mapped: [f"mcp/{one.server}/{one.name}" for one in same]
        for mapped, same in shared.items()
        if any(one.server == name for one in same)
    }
    attachment = at.desk.directory.attachment(name)
    refused = [*attachment.refused] if attachment is not None else []
    return {
        "waiting": waiting,
        "quarantined": len(waiting),
        "collisions": collisions,
        "refused": refused,
        "trace": name in at.desk.traced,
    }


def _waiting(name: str, at: Call) -> list[str]:
    directory = at.desk.directory
    return [*(resource.op for resource in directory.quarantined(name)), *directory.quarantined_shown(name)]


async def _no_body(request: Request) -> None:
    # What is not read cannot be obeyed, but somebody meant something by it: another id than the path's, a command.
    if await body_of(request):
        raise refusal(Code.MALFORMED, "nothing is read from a body here", rule="api.body", ask="send no body")
