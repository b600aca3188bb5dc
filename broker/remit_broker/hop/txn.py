"""The life of a txn around its hops: opened for a user, revoked in part or whole, closed for good."""

from __future__ import annotations

from typing import Literal

import msgspec

from remit_broker.core.claims_map import MAX_BYTES, MAX_NAMES, are_names
from remit_broker.core.fold import Fold
from remit_broker.core.labels import MAX_LABELS, ceiling, is_label
from remit_broker.core.near import by_beginning, meant
from remit_broker.core.times import rfc3339
from remit_broker.hop.close import sweep
from remit_broker.hop.head import head
from remit_broker.hop.revoked import may_decide, withheld
from remit_broker.ledger_port import LostRace, Turn
from remit_broker.ports import Ports
from remit_schemas.budget import Budget
from remit_schemas.claims import ANY_LABEL
from remit_schemas.errors import Code, refusal
from remit_schemas.grant import Claims
from remit_schemas.names import Jti, is_principal, parse_jti
from remit_schemas.records import GENESIS, OWNER, GrantRevoked, TxnClosed, TxnOpened, seal
from remit_schemas.scope import Scope

Reason = Literal["closed", "expired", "idle"]

MAX_TTL = 8 * 3600
"""Longest life of a txn in seconds."""


class Delegation(msgspec.Struct, frozen=True, kw_only=True):
    """What a user hands to a first agent. ``ttl`` is in seconds, ``auth`` says how the user was known.

    ``labels`` are those that may reach the agent, ``carried`` those of the data it has. ``continues`` is the hop, as
    ``<txn>.<hop>``, of the task that this one carries on. ``roles`` and ``groups`` are the user's; ``issuer``, ``client`` and
    ``token`` say which issuer proved the user, for which application, by which token. ``before`` is who stood above ``agent`` there.
    """

    tenant: str
    user: str
    agent: str
    scope: Scope
    budget: Budget
    ttl: int
    auth: str
    max_depth: int = 8
    labels: tuple[str, ...] = (ANY_LABEL,)
    carried: tuple[str, ...] = ()
    continues: str | None = None
    roles: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    issuer: str = ""
    client: str = ""
    token: str = ""
    before: tuple[str, ...] = ()


class Opened(msgspec.Struct, frozen=True):
    """A new txn and its root grant. ``exp`` is Unix seconds."""

    txn: str
    grant: str
    exp: int


async def open_txn(wish: Delegation, ports: Ports) -> Opened:
    """Open a txn: one record and one root grant, durable before anybody gets the grant.

    Refuses MALFORMED for what no txn can have, UNKNOWN_TARGET for an agent nobody registered, POLICY_DENIED for a user or an
    agent that is revoked and while everything is paused.
    """
    _sensible(wish, ports)
    may_decide(ports, wish.tenant)
    # INVARIANT: nothing begins for a revoked user or agent (test_no_task_is_opened_for_what_is_revoked).
    if found := ports.revocations.check((wish.agent,), wish.user):
        raise withheld(found)
    now = ports.clock.now()
    txn, hop = ports.ids.txn(), ports.ids.hop()
    jti, exp = str(Jti(txn, hop, 1)), int(now) + wish.ttl
    record = seal(
        TxnOpened(
            tenant=wish.tenant,
            txn=txn,
            seq=0,
            at=rfc3339(now),
            hop=hop,
            prev=GENESIS,
            by=ports.bus.replica,
            blind=ports.ids.blind(),
            user=wish.user,
            agent=wish.agent,
            auth=wish.auth,
            jti=jti,
            scope=wish.scope.details,
            budget=wish.budget,
            exp=exp,
            max_depth=wish.max_depth,
            labels=wish.carried,
            continues=wish.continues,
            roles=wish.roles,
            groups=wish.groups,
            issuer=wish.issuer,
            client=wish.client,
            token=wish.token,
            before=wish.before,
        )
    )
    grant = ports.mint.mint(
        Claims(
            iss=ports.mint.issuer,
            sub=wish.user,
            tenant=wish.tenant,
            aud=wish.agent,
            iat=int(now),
            exp=exp,
            jti=jti,
            txn=txn,
            depth=0,
            max_depth=wish.max_depth,
            rec=record.hash,
            authorization_details=wish.scope.details,
            budget=wish.budget,
            labels=ceiling(wish.labels),
        )
    )
    await ports.ledger.create(record, grant)
    ports.observer.delegated(record)
    return Opened(txn, grant, exp)


def _sensible(wish: Delegation, ports: Ports) -> None:
    if not wish.user or len(wish.user) > 256 or not wish.user.isprintable():
        raise refusal(Code.MALFORMED, "a grant needs a user", rule="txn.user", ask="name the user with --user")
    if not are_names(wish.roles, wish.groups):
        raise refusal(
            Code.MALFORMED, "that cannot be the roles and groups of a user", rule="txn.roles",
            ask=f"at most {MAX_NAMES} of each, printable, {MAX_BYTES} bytes together",
        )  # fmt: skip
    if not is_principal(wish.agent) or ports.registry.principal(wish.agent) is None:
        raise refusal(
            Code.UNKNOWN_TARGET, f"no agent is called {wish.agent!r}", rule="txn.agent",
            ask=f"register it first: remit agents add {wish.agent}",
        )  # fmt: skip
    if not wish.scope:
        raise refusal(Code.MALFORMED, "a grant needs a scope", rule="txn.scope", ask="name what it covers with --scope")
    if not 1 <= wish.ttl <= MAX_TTL:
        raise refusal(
            Code.MALFORMED, f"a grant lives between 1 s and {MAX_TTL} s", rule="txn.ttl", ask="choose another --ttl"
        )
    if not 0 <= wish.max_depth <= 16:
        raise refusal(Code.MALFORMED, "a depth is between 0 and 16", rule="txn.depth", ask="choose another depth")
    if len(wish.labels) > MAX_LABELS or not all(is_label(name) or name == ANY_LABEL for name in wish.labels):
        raise refusal(
            Code.MALFORMED, "that is no ceiling of labels", rule="txn.labels",
            ask=f"at most {MAX_LABELS} of a-z 0-9 _ . : / -, none for unlabelled data alone, or * for any",
        )  # fmt: skip


async def revoke(tenant: str, jti: str, who: str, why: str, ports: Ports) -> Fold:
    """Revoke a grant with everything below it (the root's: the whole txn). Binds the very next open of any descendant.

    Refuses MALFORMED for what is no jti, GRANT_INVALID for one that no record knows, GRANT_CLOSED where the txn has ended.
    """
    parsed = parse_jti(jti)
    if parsed is None:
        raise refusal(Code.MALFORMED, f"{jti!r} is not the id of a grant", rule="revoke.jti", ask="<txn>.<hop>.<n>")
    await ports.ledger.newest(tenant, parsed.txn)  # another replica may have opened that hop
    async with ports.ledger.turn(tenant, parsed.txn) as turn:
        while True:
            fold = turn.fold
            node = fold.nodes.get(parsed.hop)
            if node is None or parsed.n > node.n:
                known = [str(Jti(fold.txn, node.hop, node.n)) for node in fold.nodes.values()]
                raise refusal(
                    Code.GRANT_INVALID, "no such grant was minted", rule="revoke.unknown",
                    ask=meant(by_beginning(jti, known, least=len(fold.txn) + 4), "remit chain shows the ids"),
                )  # fmt: skip
            _still_open(fold)
            if fold.is_revoked(parsed.hop):
                return fold
            if not fold.stands(parsed.hop):
                raise refusal(
                    Code.GRANT_CLOSED, f"hop {parsed.hop} has ended, its grant is dead already", rule="revoke.closed",
                    ask="nothing is left to do; to stop the whole task: remit revoke --txn",
                )  # fmt: skip
            record = seal(
                GrantRevoked(
                    **head(fold, parsed.hop, ports),
                    jti=jti,
                    who=who,
                    why=why[:512],
                )
            )
            done = await turn.append(record, None)
            if not isinstance(done, LostRace):
                return done


async def close_txn(tenant: str, txn: str, who: str, reason: str, ports: Ports) -> Fold:
    """Close a txn: what is still open below it first, charged at what it held. Closing a closed one changes nothing."""
    async with ports.ledger.turn(tenant, txn) as turn:
        while turn.fold.state == "open":
            for hop in turn.fold.descendants_open(turn.fold.root):
                await sweep(hop, ports, turn, "its task was closed", "cancelled")
            fold = turn.fold
            # Another replica may have opened something meanwhile, or have closed the txn itself.
            if fold.state == "open" and not fold.descendants_open(fold.root):
                await end(turn, _closer(who, fold), "expired" if reason == "expired" else "closed", ports)
        return turn.fold


def _closer(who: str, fold: Fold) -> str:
    """The last record is always shown whole: a task's own user is not named in it a second time."""
    own = [f"{fold.issuer}:{fold.user}"] if fold.issuer else [fold.user, f"local:{fold.user}", f"open:{fold.user}"]
    # INVARIANT: the end of a task does not name its user (test_the_last_record_names_no_user).
    return OWNER if who in own else who


async def end(turn: Turn, who: str, reason: Reason, ports: Ports) -> Fold | LostRace:
    """Append the closing of a txn in which nothing is open any more."""
    fold = turn.fold
    root = fold.totals
    record = seal(
        TxnClosed(
            **head(fold, fold.root, ports),
            reason=reason,
            who=who,
            spent=root.spent,
            overrun=root.overrun,
        )
    )
    return await turn.append(record, None)


def _still_open(fold: Fold) -> None:
    if fold.state != "open":
        raise refusal(
            Code.GRANT_CLOSED, f"txn {fold.txn} has ended, its grants are dead already", rule="txn.closed",
            ask="nothing is left to do",
        )  # fmt: skip
