"""Who was turned away at the door of the API: a record like that of every other refusal, so that whoever tries tokens is seen."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

import msgspec
from starlette.requests import Request

from remit_broker.core.issuers import Ability
from remit_broker.core.times import rfc3339
from remit_broker.edges.http.desk import Call, Desk
from remit_broker.edges.http.operators import Caller, Operator, require
from remit_broker.ports import Ports
from remit_schemas.errors import Code, Refusal
from remit_schemas.names import DEFAULT_TENANT
from remit_schemas.records import HopRefused, seal

AT_THE_DOOR: Final = "$http"
"""The caller in such a record: no principal can be called so. Who it was, as far as that was proved, is in the message."""


async def let_in(
    request: Request, route: str, ability: Ability | None, operator: Operator, desks: Mapping[str, Desk]
) -> Caller:
    """The caller of ``route``, who has ``ability``. Whoever is not known, or has it not, is refused and recorded.

    Such a record is of the tenant of the user, where one was proved, else of the default one.
    """
    caller: Caller | None = None
    try:
        caller = await operator.known(request)
        if ability is not None:
            require(caller, ability)
        return caller
    except Refusal as no:
        own = caller.tenant if caller is not None else None
        tenant = own if own is not None and own in desks else DEFAULT_TENANT
        await turned_away(no, route, tenant, desks[tenant].ports)
        raise


@asynccontextmanager
async def noticing(route: str, call: Call) -> AsyncIterator[None]:
    """Inside, a token in a body that is not accepted is recorded as one at the door is."""
    try:
        yield
    except Refusal as no:
        if no.body.code is Code.UNAUTHENTICATED:
            await turned_away(no, route, call.tenant, call.desk.ports)
        raise


async def turned_away(no: Refusal, route: str, tenant: str, ports: Ports) -> None:
    """Record that ``no`` was said to somebody who asked for ``route``. Like all refusals it is counted with those that it repeats.

    INVARIANT: a flood of tokens is a few records (test_whoever_is_turned_away_at_the_api_is_in_the_refusals).
    """
    body = no.body
    record = seal(
        HopRefused(
            tenant=tenant,
            txn=None,
            hop=ports.ids.hop(),
            parent=None,
            user=None,
            at=rfc3339(ports.clock.now()),
            by=ports.bus.replica,
            caller=AT_THE_DOOR,
            resource=f"remit{route}",
            stage="admit",
            code=body.code,
            message=body.message[:1024],
            rule=body.rule[:512],
            ask=body.ask[:512],
        )
    )
    record = msgspec.structs.replace(record, cause=no.cause[:512])
    await ports.refusals.write(record)
    ports.observer.refused(record)
