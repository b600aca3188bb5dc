"""``/api/policy``: what would be decided, what was, what is only observed, and exceptions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container
from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.requests import Request

from remit_broker.core.history import answered, past_of
from remit_broker.core.issuers import Ability
from remit_broker.core.policy import PolicyRequest, Verdict
from remit_broker.core.revocations import Entry
from remit_broker.core.rulings import DEFAULT_DENY, MAX_LIFE, Exempt
from remit_broker.core.times import rfc3339
from remit_broker.core.what_if import WhatIf, outcome_of
from remit_broker.edges.http.guard import body_of, typed, typed_as
from remit_broker.operator_ports import AdminLog, Index, RevocationList
from remit_broker.ports import Ports
from remit_schemas.errors import Code, refusal
from remit_schemas.names import is_principal, parse_resource

if TYPE_CHECKING:
    from remit_broker.edges.http.desk import Call

Known = Callable[[str, str], bool]
CaughtUp = Callable[[], Awaitable[None]]
MAX_WHY: Final = 512
KINDS: Final = ("opened", "refused", "answered")
PAGE: Final = 1000
"""Decisions of the past in one answer."""
LIFTABLE: Final = (Code.POLICY_DENIED, Code.CONTENT_DENIED)


class Observe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``POST /api/policy/observe`` and ``…/enforce``: one of a policy's id and a server's name."""

    policy: str | None = None
    server: str | None = None
    why: str = ""


class Allow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``POST /api/policy/allow``: a refused call, and for how many seconds its like is not refused by what refused it."""

    hop: str
    seconds: int
    why: str = ""


class Withdraw(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``POST /api/policy/withdraw``: the exception, by the call it was made for."""

    hop: str
    why: str = ""


class PolicyDesk:
    """What operators ask about policy, and say about it."""

    def __init__(
        self, tenant: str, ports: Ports, kept: tuple[RevocationList, AdminLog, Index], known: Known, caught_up: CaughtUp
    ) -> None:
        """Of one tenant. ``known`` says whether a tenant may know of a policy of that id, ``caught_up`` waits for the index."""
        self._tenant, self._ports, self._known, self._caught_up = tenant, ports, known, caught_up
        self._list, self._admin, self._index = kept

    def simulate(self, wish: WhatIf, said: Container[str]) -> dict[str, Any]:
        """What policy would say, with what the registry knows of agent and target in place of what is not ``said`` (names of members).

        INVARIANT: nobody's what-if is asked otherwise than they said (test_what_is_said_in_a_what_if_is_not_overruled).
        """
        ports, resource = self._ports, parse_resource(wish.resource)
        target, caller = ports.registry.target(resource), ports.registry.principal(wish.agent)
        known: dict[str, Any] = {"environment": ports.environment}
        if caller is not None:
            known["tier"] = caller.tier
        if target is not None:
            hints = target.annotations
            known |= {
                "target_tier": target.tier, "tool_groups": target.groups, "readOnly": hints.read_only,
                "destructive": hints.destructive, "idempotent": hints.idempotent, "openWorld": hints.open_world,
            }  # fmt: skip
        if "readOnly" in said:
            # What reads only is not destructive, unless somebody says so.
            known.pop("destructive", None)
        fields = {name: value for name, value in known.items() if name not in said}
        wish = msgspec.structs.replace(wish, tenant=self._tenant, **fields)
        args = ports.policy.arguments(target, wish.args) if target is not None and wish.args else None
        request = wish.question(args)
        return told(request, ports.policy.decide(request), known=target is not None)

    async def history(self, after: int, kind: str, since: str) -> dict[str, Any]:
        """Decisions from ``since`` (RFC 3339) on in order, a page of them, and where the next one begins (None: there is none)."""
        await self._caught_up()
        if kind == "answered":
            found = await self._index.answers(self._tenant, after, PAGE)
            told = [(seq, answered(raw, opened, user, seq)) for seq, raw, opened, user in found]
        else:
            rows = await self._index.decisions(self._tenant, after, kind, PAGE, since)
            told = [(seq, past_of(raw, user, seq)) for seq, raw, user in rows]
        pasts = [past for _, past in told if past is not None]
        return {"decisions": pasts, "next": told[-1][0] if len(told) == PAGE else None}

    def rulings(self) -> dict[str, Any]:
        """What is only observed, and the exceptions in force; those that have ended are told too, with what became of them."""
        now = int(self._ports.clock.now())
        entries = [entry for entry in self._list.entries() if entry.kind in ("observe", "exception")]
        observed = [_plain(entry) for entry in entries if entry.state == "observed"]
        exceptions = [
            {**_plain(entry), **msgspec.json.decode(entry.detail), "in_force": _lives(entry, now)}
            for entry in entries
            if entry.kind == "exception"
        ]
        return {"observed": observed, "exceptions": exceptions}

    async def observe(self, wish: Observe, who: str, state: str) -> dict[str, Any]:
        """Only record what a policy, or all policies about a server, refuse; or enforce it again. Refuses UNKNOWN_TARGET."""
        if (wish.policy is None) is (wish.server is None):
            raise refusal(
                Code.MALFORMED, "name a policy or a server", rule="observe.what", ask="one of policy and server"
            )
        if wish.policy is not None and not self._known(self._tenant, wish.policy) and state == "observed":
            raise refusal(
                Code.UNKNOWN_TARGET, f"no policy has the id {wish.policy[:64]!r}", rule="observe.unknown",
                ask="remit policy check lists them",
            )  # fmt: skip
        if wish.server is not None:
            principal = self._ports.registry.principal(wish.server) if is_principal(wish.server) else None
            if principal is None or principal.kind != "mcp":
                raise refusal(
                    Code.UNKNOWN_TARGET, f"no server is called {wish.server[:64]!r}", rule="observe.unknown",
                    ask="remit servers list",
                )  # fmt: skip
        name = f"policy {wish.policy}" if wish.policy is not None else f"server {wish.server}"
        at, why = self._now(), wish.why[:MAX_WHY]
        entry = Entry(kind="observe", name=name, who=who, at=at, why=why, state=_state(state), tenant=self._tenant)
        return await self._say(entry, first=state == "observed")

    async def allow(self, wish: Allow, who: str) -> dict[str, Any]:
        """For a time, what refused a call does not refuse its like: the same user, agent, action and resource.

        Refuses UNKNOWN_TARGET for a call that was not refused, CONFLICT where what refused it was not a policy.
        """
        if not 1 <= wish.seconds <= MAX_LIFE:
            raise refusal(
                Code.MALFORMED,
                "an exception lives between 1 s and 30 days",
                rule="allow.for",
                ask="choose another --for",
            )
        await self._caught_up()
        raw = await self._index.refusal(self._tenant, wish.hop)
        if raw is None:
            raise refusal(
                Code.UNKNOWN_TARGET,
                f"no refused call has the id {wish.hop[:64]}",
                rule="allow.unknown",
                ask="remit chain TXN",
            )
        past = past_of(raw, raw["user"] or "")
        # INVARIANT: an exception lifts policies and nothing else (test_an_exception_is_made_only_of_what_policy_refused).
        if past is None or past.then != "deny" or raw["code"] not in LIFTABLE or "policy.error" in past.rules:
            ask = "remit why says what refused it; an approval is given with remit approvals approve"
            raise refusal(
                Code.CONFLICT, "no policy that could be excepted refused this call", rule="allow.reason", ask=ask
            )
        asked = past.question
        exempt = Exempt(
            hop=past.hop, tenant=self._tenant, action=asked.action, user=asked.user, caller=asked.caller,
            resource=str(asked.resource), rules=past.rules or (DEFAULT_DENY,), until=int(self._ports.clock.now()) + wish.seconds,
        )  # fmt: skip
        entry = Entry(
            kind="exception", name=past.hop, who=who, at=self._now(), why=wish.why[:MAX_WHY], state="allowed",
            tenant=self._tenant,
            detail=msgspec.json.encode(exempt).decode(),
        )  # fmt: skip
        return {**await self._say(entry, first=True), **msgspec.to_builtins(exempt)}

    async def withdraw(self, wish: Withdraw, who: str) -> dict[str, Any]:
        """End an exception. Refuses UNKNOWN_TARGET."""
        made = [one for one in self._list.entries() if (one.kind, one.name) == ("exception", wish.hop)]
        if not made or made[0].state != "allowed":
            raise refusal(
                Code.UNKNOWN_TARGET, f"there is no exception for {wish.hop[:64]}", rule="withdraw.unknown",
                ask="remit policy exceptions",
            )  # fmt: skip
        entry = msgspec.structs.replace(made[0], who=who, at=self._now(), why=wish.why[:MAX_WHY], state="withdrawn")
        return await self._say(entry, first=False)

    async def _say(self, entry: Entry, first: bool) -> dict[str, Any]:
        """Record and say a ruling. What permits more is recorded ``first``; what permits less is in force first.

        INVARIANT: nothing is let through without a record of who said so (test_nothing_is_excepted_without_a_record).
        """
        if first:
            record = await self._admin.append(entry)
            await self._list.put(entry)
        else:
            await self._list.put(entry)
            record = await self._admin.append(entry)
        return {**_plain(entry), "record": record.seq, "hash": record.hash}

    def _now(self) -> str:
        return rfc3339(self._ports.clock.now())


def told(request: PolicyRequest, verdict: Verdict, known: bool = True) -> dict[str, Any]:
    """A verdict as it is shown."""
    return {
        "outcome": outcome_of(verdict),
        "rules": list(verdict.decision.rules) or [DEFAULT_DENY],
        "reason": verdict.reason,
        "ask": verdict.ask,
        "code": verdict.code,
        "redact": verdict.redact,
        "approvals": verdict.approvals,
        "cap": verdict.cap,
        "label": verdict.label,
        "cause": verdict.cause,
        "revision": verdict.decision.revision,
        "target_known": known,
        "args": request.args,
    }


def _plain(entry: Entry) -> dict[str, Any]:
    raw: dict[str, Any] = msgspec.to_builtins(entry)
    raw.pop("detail")
    return raw


def _lives(entry: Entry, now: int) -> bool:
    return entry.state == "allowed" and msgspec.json.decode(entry.detail, type=Exempt).until > now


def _state(name: str) -> Any:
    return "observed" if name == "observed" else "enforced"


# Routes


async def _simulate(request: Request, at: Call) -> Any:
    raw = await body_of(request)
    return at.desk.policy.simulate(typed_as(raw, WhatIf), raw)


async def _decisions(request: Request, at: Call) -> Any:
    wanted = {key: value for key, value in request.query_params.items() if key != "tenant"}
    after, kind, since = wanted.pop("after", "0"), wanted.pop("kind", "opened"), wanted.pop("since", "")
    if wanted or not (after.isascii() and after.isdigit() and len(after) < 16) or kind not in KINDS or len(since) > 32:
        raise refusal(
            Code.MALFORMED, "decisions are asked for by kind, after and since", rule="api.query",
            ask=f"kind is one of {', '.join(KINDS)}, after the number that the page before ended with",
        )  # fmt: skip
    return await at.desk.policy.history(int(after), kind, since)


async def _rulings(request: Request, at: Call) -> Any:
    return at.desk.policy.rulings()


async def _observe(request: Request, at: Call) -> Any:
    return await at.desk.policy.observe(await typed(request, Observe), at.who, "observed")


async def _enforce(request: Request, at: Call) -> Any:
    return await at.desk.policy.observe(await typed(request, Observe), at.who, "enforced")


async def _allow(request: Request, at: Call) -> Any:
    return await at.desk.policy.allow(await typed(request, Allow), at.who)


async def _withdraw(request: Request, at: Call) -> Any:
    return await at.desk.policy.withdraw(await typed(request, Withdraw), at.who)


ROUTES: Final[tuple[tuple[str, str, Ability, Callable[[Request, Call], Awaitable[Any]]], ...]] = (
    ("POST", "/api/policy/simulate", "read", _simulate),
    ("GET", "/api/policy/decisions", "read", _decisions),
    ("GET", "/api/policy/rulings", "read", _rulings),
    ("POST", "/api/policy/observe", "operate", _observe),
    ("POST", "/api/policy/enforce", "operate", _enforce),
    ("POST", "/api/policy/allow", "operate", _allow),
    ("POST", "/api/policy/withdraw", "operate", _withdraw),
)
READS: Final = (_simulate, _observe, _enforce, _allow, _withdraw)
"""Those that read a body."""
