"""A task begun with a user's own token: whoever the issuer says it is delegates to the agent that brought it."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from remit_broker.core.caps import Whose
from remit_broker.core.user_tokens import Identity
from remit_broker.hop.hop import Hop
from remit_broker.hop.txn import Delegation, Opened, open_txn
from remit_broker.ports import Ports
from remit_schemas.budget import ONE_CALL, ZERO, Budget
from remit_schemas.claims import ANY_LABEL
from remit_schemas.errors import Code, Refusal, refusal
from remit_schemas.scope import Detail, Scope


class Wish(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What ``txn.open`` takes. ``ttl`` is in seconds; the issuer's table may make it shorter. ``labels`` may reach the agent."""

    token: str
    scopes: tuple[Detail, ...]
    budget: Budget
    ttl: int = 600
    max_depth: Annotated[int, msgspec.Meta(ge=0, le=16)] = 8
    labels: tuple[str, ...] = (ANY_LABEL,)


async def begin(hop: Hop, ports: Ports) -> dict[str, Any]:
    """``txn.open``: the root grant of a new task, for the caller. Refuses UNAUTHENTICATED, and whatever :func:`open_txn` does."""
    try:
        wish = msgspec.convert(hop.request.args, Wish, strict=True)
    except msgspec.ValidationError as error:
        # It names the member and its type, never the value: the token is in there.
        raise refusal(
            Code.MALFORMED, f"the arguments are not right: {error}", rule="txn.open",
            ask="send token, scopes and budget; ttl, max_depth and labels where they are not 600, 8 and any",
        ) from None  # fmt: skip
    opened = await open_for(wish, hop.ask.caller, hop.ask.tenant, ports)
    return {"txn": opened.txn, "grant": opened.grant, "exp": opened.exp}


async def open_for(wish: Wish, agent: str, tenant: str, ports: Ports) -> Opened:
    """Open a task for the user of ``wish.token``, held by ``agent``."""
    return await open_as(await ports.identities.identify(wish.token), wish, agent, tenant, ports)


async def open_as(identity: Identity, wish: Wish, agent: str, tenant: str, ports: Ports) -> Opened:
    """Open a task for a user whom an issuer proved, held by ``agent``."""
    ports.identities.may_hold(agent, identity)
    # INVARIANT: no user of one tenant is served in another (test_no_forged_token_gets_in_anywhere).
    if identity.tenant != tenant:
        raise refusal(
            Code.UNAUTHENTICATED, f"the user's token is refused: {identity.issuer} says that the user is of another tenant",
            rule="identity.tenant", ask="bring it to an agent of the user's own tenant",
        )  # fmt: skip
    # INVARIANT: beginning tasks without end is counted as calls are (test_beginning_tasks_is_counted_in_the_caps).
    reserved = await ports.accounts.reserve(Whose(tenant, identity.user, agent, ""), ONE_CALL)
    try:
        opened = await open_txn(delegated(identity, agent, wish, ports), ports)
    except BaseException as why:
        # It may have begun all the same where the ledger did not answer.
        none = isinstance(why, Refusal) and not why.body.rule.startswith("ledger.")
        ports.accounts.settle(reserved, ZERO if none else ONE_CALL)
        raise
    ports.accounts.settle(reserved, ONE_CALL)
    return opened


def delegated(identity: Identity, agent: str, wish: Wish, ports: Ports) -> Delegation:
    """The delegation of a user whom an issuer proved."""
    return Delegation(
        tenant=identity.tenant,
        user=identity.user,
        agent=agent,
        scope=Scope.of(wish.scopes),
        budget=wish.budget,
        ttl=min(wish.ttl, ports.identities.longest(identity)),
        auth=identity.auth,
        max_depth=wish.max_depth,
        labels=wish.labels,
        roles=identity.roles,
        groups=identity.groups,
        issuer=identity.iss,
        client=identity.client,
        token=identity.token,
    )
