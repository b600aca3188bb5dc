"""``/api``: what operators and the command line do. Every handler authenticates first and answers in JSON."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from remit_broker.core import nkey
from remit_broker.core.accounts import KINDS
from remit_broker.core.history import past_of
from remit_broker.core.issuers import Ability
from remit_broker.core.listing import ChainFilter
from remit_broker.core.near import meant
from remit_broker.core.registry import Principal
from remit_broker.core.times import rfc3339
from remit_broker.core.what_if import WhatIf
from remit_broker.edges.http.approvals import Approvals, Say
from remit_broker.edges.http.guard import Handler, answering, body_of
from remit_broker.edges.http.operators import Caller, Operator, elsewhere, lacking, require
from remit_broker.edges.http.policy import Allow, Observe, PolicyDesk, Withdraw
from remit_broker.edges.http.revocations import KillSwitch, Stop
from remit_broker.hop.begin import Wish, open_as, open_for
from remit_broker.hop.decide import Approver
from remit_broker.hop.txn import Delegation, close_txn, open_txn, revoke
from remit_broker.ports import Directory, Index, Ports
from remit_schemas.budget import Budget
from remit_schemas.errors import Code, Refusal, refusal
from remit_schemas.names import is_principal, is_txn
from remit_schemas.scope import Detail, Scope


class Delegate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``POST /api/grants``: open a txn for a user. ``ttl`` is in seconds.

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


LOCAL_ROLES = ("admin", "approver", "operator")
"""What the OS user who runs the broker is, to policies about approvals."""

Evidence = Callable[[str], Awaitable[dict[str, Any]]]


class Api:
    """The handlers, over what the app wired. ``servers`` reports and reloads the servers the broker runs itself."""

    def __init__(
        self, ports: Ports, directory: Directory, index: Index, operator: Operator, extras: Mapping[str, Any]
    ) -> None:
        self._ports, self._directory, self._index, self._operator = ports, directory, index, operator
        self._published: Mapping[str, Any] = extras["published"]
        self._evidence: Evidence = extras["evidence"]
        self._servers: Callable[[], list[dict[str, Any]]] = extras["servers"]
        self._reload: Callable[[], Awaitable[None]] = extras["reload"]
        self._describe: Callable[[], Awaitable[dict[str, Any]]] = extras["status"]
        self._caught_up: Callable[[], Awaitable[None]] = extras["caught_up"]
        self._budgets: Callable[[str], Awaitable[list[dict[str, Any]]]] = extras["budgets"]
        self._tenant = "default"
        self._desk = PolicyDesk(ports, extras["revocations"], extras["admin"], index, extras["is_policy"])
        self._approvals = Approvals(index)
        self._kill = KillSwitch(extras["revocations"], extras["admin"], directory, index, ports.clock)

    def routes(self) -> list[Route]:
        """All routes under ``/api``."""
        table: list[tuple[str, str, Ability | None, Callable[[Request, str], Awaitable[Any]]]] = [
            ("POST", "/api/grants", None, self._grant),
            ("GET", "/api/status", "read", self._status),
            ("GET", "/api/agents", "read", self._agents),
            ("POST", "/api/agents", "operate", self._add_agent),
            ("DELETE", "/api/agents/{name}", "operate", self._remove_agent),
            ("GET", "/api/servers", "read", self._list_servers),
            ("POST", "/api/servers/reload", "operate", self._reload_servers),
            ("POST", "/api/servers/{name}/accept", "operate", self._accept),
            ("GET", "/api/budgets", "read", self._list_budgets),
            ("GET", "/api/chains", "read", self._chains),
            ("GET", "/api/chains/{txn}", "read", self._chain),
            ("GET", "/api/chains/{txn}/evidence", "read", self._export),
            ("POST", "/api/chains/{txn}/close", "operate", self._close),
            ("GET", "/api/approvals", "read", self._list_approvals),
            ("GET", "/api/approvals/{id}", "read", self._approval),
            ("POST", "/api/approvals/{id}", "approve", self._decide),
            ("GET", "/api/revocations", "read", self._revocations),
            ("POST", "/api/revocations", "operate", self._revoke),
            ("POST", "/api/revocations/reinstate", "operate", self._reinstate),
            ("GET", "/api/find/{prefix}", "read", self._find),
            ("GET", "/api/records/{hop}", "read", self._record),
            ("POST", "/api/policy/simulate", "read", self._simulate),
            ("GET", "/api/policy/decisions", "read", self._decisions),
            ("GET", "/api/policy/rulings", "read", self._rulings),
            ("POST", "/api/policy/observe", "operate", self._observe),
            ("POST", "/api/policy/enforce", "operate", self._enforce),
            ("POST", "/api/policy/allow", "operate", self._allow),
            ("POST", "/api/policy/withdraw", "operate", self._withdraw),
        ]
        fault = self._ports.observer.fault
        return [Route(at, answering(self._known(do, need), fault), methods=[verb]) for verb, at, need, do in table]

    def _known(self, do: Callable[[Request, str], Awaitable[Any]], ability: Ability | None) -> Handler:
        """``do`` for callers with ``ability``; with None it asks for itself."""
        reads = do in (
            self._grant, self._add_agent, self._revoke, self._reinstate, self._decide,
            self._simulate, self._observe, self._enforce, self._allow, self._withdraw,
        )  # fmt: skip

        async def handler(request: Request) -> Response:
            caller = request.state.caller = await self._operator.known(request)
            if ability is not None:
                require(caller, ability)
            if caller.identity is not None and caller.identity.tenant != self._tenant:
                raise elsewhere(caller)
            if not reads:
                await _no_body(request)
            return JSONResponse(msgspec.to_builtins(await do(request, caller.who)))

        return handler

    async def _grant(self, request: Request, who: str) -> Any:
        wish, caller = await _typed(request, Delegate), request.state.caller
        if wish.token and (wish.user or wish.roles or wish.groups):
            raise refusal(
                Code.MALFORMED,
                "a token says who the user is",
                rule="grants.user",
                ask="leave out user, roles and groups",
            )
        if wish.token or (caller.identity is not None and not wish.user):
            return await self._for_proved(wish, caller)
        # INVARIANT: only an operator acts for a user without that one's token, only an administrator says which roles that one has
        # (test_a_user_opens_tasks_for_nobody_else).
        require(caller, "administer" if wish.roles or wish.groups else "operate")
        return await open_txn(
            Delegation(
                tenant=self._tenant,
                roles=wish.roles,
                groups=wish.groups,
                user=wish.user,
                agent=wish.agent,
                scope=Scope.of(wish.scopes),
                budget=wish.budget,
                ttl=wish.ttl,
                auth=who,
                max_depth=wish.max_depth,
            ),
            self._ports,
        )

    async def _for_proved(self, wish: Delegate, caller: Caller) -> Any:
        """For the user of the token in the body, else for the caller."""
        about = Wish(token=wish.token, scopes=wish.scopes, budget=wish.budget, ttl=wish.ttl, max_depth=wish.max_depth)
        if wish.token:
            return await open_for(about, wish.agent, self._tenant, self._ports)
        if wish.roles or wish.groups or caller.identity is None:
            raise lacking(caller, "administer")
        return await open_as(caller.identity, about, wish.agent, self._tenant, self._ports)

    async def _status(self, request: Request, who: str) -> Any:
        return {**await self._describe(), "published": self._published}

    async def _list_budgets(self, request: Request, who: str) -> Any:
        wanted = dict(request.query_params)
        if set(wanted) - {"kind", "name"} or wanted.get("kind", KINDS[0]) not in KINDS:
            raise refusal(
                Code.MALFORMED, "budgets are asked for by kind and name", rule="api.query",
                ask=f"kind is one of {', '.join(KINDS)}; name may be a pattern",
            )  # fmt: skip
        kind, name = wanted.get("kind"), wanted.get("name", "*")
        rows = await self._budgets(self._tenant)
        # A pattern names itself too: tools that share an account are shown under it.
        fits = [
            row
            for row in rows
            if kind in (None, row["kind"]) and (row["name"] == name or fnmatchcase(row["name"], name))
        ]
        return {"budgets": fits}

    async def _agents(self, request: Request, who: str) -> Any:
        return {"agents": [self._described(p) for p in self._directory.principals()]}

    def _described(self, principal: Principal) -> dict[str, Any]:
        attachment = self._directory.attachment(principal.name)
        served = [d.op for d in attachment.definitions] if attachment else []
        return {**msgspec.to_builtins(principal), "serves": served}

    async def _add_agent(self, request: Request, who: str) -> Any:
        new = await _typed(request, NewAgent)
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
            tenant=self._tenant,
            tier=new.tier,
            created=rfc3339(self._ports.clock.now()),
        )
        await self._directory.add(principal)
        return {"agent": new.name, "kind": new.kind}

    async def _remove_agent(self, request: Request, who: str) -> Any:
        await self._directory.remove(request.path_params["name"])
        return {"removed": request.path_params["name"]}

    async def _list_servers(self, request: Request, who: str) -> Any:
        managed = {server["name"]: server for server in self._servers()}
        listed = [
            {"state": "remote", **self._described(p), **managed.pop(p.name, {}), "waiting": self._waiting(p.name)}
            for p in self._directory.principals()
            if p.kind == "mcp"
        ]
        return {"servers": [*listed, *managed.values()]}

    def _waiting(self, name: str) -> list[str]:
        return [resource.op for resource in self._directory.quarantined(name)]

    async def _reload_servers(self, request: Request, who: str) -> Any:
        # No API takes a command: what runs comes from a file on this machine, and this only says that it changed.
        await self._reload()
        return {"servers": self._servers()}

    async def _accept(self, request: Request, who: str) -> Any:
        return {"accepted": await self._directory.accept(request.path_params["name"])}

    async def _chains(self, request: Request, who: str) -> Any:
        raw: dict[str, Any] = dict(request.query_params)
        try:
            wanted = msgspec.convert(raw, ChainFilter, strict=False)
        except msgspec.ValidationError as error:
            raise refusal(Code.MALFORMED, str(error), rule="api.query", ask="see remit chains --help") from None
        await self._caught_up()
        page = await self._index.chains(self._tenant, wanted)
        return {"chains": page.rows, "cursor": page.cursor}

    async def _chain(self, request: Request, who: str) -> Any:
        txn = self._txn(request)
        await self._caught_up()
        entries = await self._index.chain(self._tenant, txn)
        if not entries:
            raise await self._no_txn(txn)
        refused = await self._index.refusals(self._tenant, txn)
        return {"txn": txn, "records": [entry["record"] for entry in entries], "refusals": refused}

    async def _export(self, request: Request, who: str) -> Any:
        return await self._evidence(self._txn(request))

    async def _close(self, request: Request, who: str) -> Any:
        fold = await self._existing(close_txn(self._tenant, self._txn(request), who, "closed", self._ports), request)
        return {"txn": fold.txn, "state": fold.state, "spent": fold.nodes[fold.root].spent}

    async def _revoke(self, request: Request, who: str) -> Any:
        wish = await _typed(request, Revocation)
        others = wish.all or not wish.agent is wish.user is wish.tool is wish.tenant is None
        if (wish.grant is not None) + (wish.txn is not None) + others != 1:
            raise refusal(
                Code.MALFORMED, "name exactly one thing to revoke", rule="revoke.what",
                ask="one of grant, txn, agent, user, tool, tenant and all",
            )  # fmt: skip
        if others:
            await self._caught_up()
            return await self._kill.revoke(wish, who, self._tenant)
        jti = wish.grant
        if wish.txn is not None:
            fold = await self._existing(self._ports.ledger.fold(self._tenant, wish.txn), request, wish.txn)
            jti = f"{fold.txn}.{fold.root}.1"
        work = revoke(self._tenant, jti or "", who, wish.why, self._ports)
        fold = await self._existing(work, request, wish.txn or jti)
        await self._kill.announce(jti or "")
        return {"txn": fold.txn, "revoked": jti, "seq": fold.seq}

    async def _reinstate(self, request: Request, who: str) -> Any:
        return await self._kill.reinstate(await _typed(request, Stop), who)

    async def _list_approvals(self, request: Request, who: str) -> Any:
        await self._caught_up()
        state = request.query_params.get("state", "waiting")
        return await self._approvals.listed(self._tenant, state, self._ports)

    async def _approval(self, request: Request, who: str) -> Any:
        await self._caught_up()
        return await self._approvals.shown(self._tenant, str(request.path_params["id"]), self._ports)

    async def _decide(self, request: Request, who: str) -> Any:
        said = await _typed(request, Say)
        await self._caught_up()
        by = _approver(request.state.caller, self._tenant)
        return await self._approvals.decided(str(request.path_params["id"]), said, by, self._ports)

    async def _revocations(self, request: Request, who: str) -> Any:
        return {"revocations": self._kill.in_force(), **await self._kill.history()}

    async def _find(self, request: Request, who: str) -> Any:
        await self._caught_up()
        prefix = str(request.path_params["prefix"]).lower()
        txns = await self._index.find(self._tenant, prefix)
        hops = await self._index.hops_like(self._tenant, prefix)
        found = [*({"txn": txn, "hop": ""} for txn in txns), *(hit._asdict() for hit in hops)]
        return {"found": found, "near": [] if found else await self._index.near(self._tenant, prefix)}

    async def _record(self, request: Request, who: str) -> Any:
        hop = str(request.path_params["hop"])
        await self._caught_up()
        hits = [hit for hit in await self._index.hops_like(self._tenant, hop) if hit.hop == hop]
        if not hits:
            raise refusal(Code.UNKNOWN_TARGET, f"no hop {hop[:64]}", rule="api.unknown-hop", ask="remit chain TXN")
        if hits[0].kind == "refused":
            refused = await self._index.refusal(self._tenant, hop)
            asked = past_of(refused, refused["user"] or "") if refused else None
            return {"txn": hits[0].txn, "hop": hop, "records": [refused], "asked": asked}
        entries = await self._index.chain(self._tenant, hits[0].txn or "")
        mine = [entry["record"] for entry in entries if entry["record"]["hop"] == hop]
        opened = next((record for record in mine if record["kind"] == "hop.opened"), None)
        asked = past_of(opened, entries[0]["record"]["user"]) if opened else None
        return {"txn": hits[0].txn, "hop": hop, "records": mine, "asked": asked}

    async def _simulate(self, request: Request, who: str) -> Any:
        return self._desk.simulate(msgspec.structs.replace(await _typed(request, WhatIf), tenant=self._tenant))

    async def _decisions(self, request: Request, who: str) -> Any:
        wanted = dict(request.query_params)
        after, kind = wanted.pop("after", "0"), wanted.pop("kind", "opened")
        if wanted or not (after.isascii() and after.isdigit() and len(after) < 16) or kind not in ("opened", "refused"):
            raise refusal(
                Code.MALFORMED, "decisions are asked for by kind and after", rule="api.query",
                ask="kind is opened or refused, after the number that the page before ended with",
            )  # fmt: skip
        await self._caught_up()
        return await self._desk.history(self._tenant, int(after), kind)

    async def _rulings(self, request: Request, who: str) -> Any:
        return self._desk.rulings()

    async def _observe(self, request: Request, who: str) -> Any:
        return await self._desk.observe(await _typed(request, Observe), who, "observed")

    async def _enforce(self, request: Request, who: str) -> Any:
        return await self._desk.observe(await _typed(request, Observe), who, "enforced")

    async def _allow(self, request: Request, who: str) -> Any:
        await self._caught_up()
        return await self._desk.allow(self._tenant, await _typed(request, Allow), who)

    async def _withdraw(self, request: Request, who: str) -> Any:
        return await self._desk.withdraw(await _typed(request, Withdraw), who)

    def _txn(self, request: Request) -> str:
        txn = str(request.path_params["txn"])
        if not is_txn(txn):
            raise refusal(Code.MALFORMED, f"{txn[:64]!r} is not a txn", rule="api.txn", ask="32 lower-case hex digits")
        return txn

    async def _no_txn(self, txn: str) -> Refusal:
        await self._caught_up()
        ask = meant(await self._index.near(self._tenant, txn[:128]), "remit chains lists them")
        return refusal(Code.UNKNOWN_TARGET, f"no txn {txn[:128]}", rule="api.unknown-txn", ask=ask)

    async def _existing(self, work: Awaitable[Any], request: Request, txn: str | None = None) -> Any:
        try:
            return await work
        except Refusal as no:
            if no.body.rule == "ledger.unknown-txn":
                raise await self._no_txn(txn or self._txn(request)) from None
            raise


def _approver(caller: Caller, tenant: str) -> Approver:
    """Who decides, as policy sees them: a user with the roles that an issuer proved, or whoever this machine trusts."""
    proved = caller.identity
    if proved is None:
        auth, _, user = caller.who.rpartition(":")
        return Approver(who=caller.who, user=user, tenant=tenant, auth=auth, roles=LOCAL_ROLES)
    # INVARIANT: with four eyes the same user is the same person on both sides, whatever door they came through
    # (test_nobody_approves_their_own_call_by_another_door).
    roles = tuple(sorted({*proved.roles, *caller.roles}))
    return Approver(
        who=caller.who, user=proved.user, tenant=tenant, auth=proved.auth, roles=roles, groups=proved.groups
    )


async def _no_body(request: Request) -> None:
    # What is not read cannot be obeyed, but somebody meant something by it: another id than the path's, a command.
    if await body_of(request):
        raise refusal(Code.MALFORMED, "nothing is read from a body here", rule="api.body", ask="send no body")


async def _typed(request: Request, kind: type[Any]) -> Any:
    raw = await body_of(request)
    try:
        return msgspec.convert(raw, kind, strict=True)
    except (msgspec.ValidationError, ValueError) as error:
        raise refusal(Code.MALFORMED, f"the body is not right: {error}", rule="api.body", ask="see the docs") from None
