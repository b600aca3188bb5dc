"""``GET /metrics``, and who may read it."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from remit_broker.edges.http.guard import answering
from remit_broker.edges.http.operators import Operator, bearer, require
from remit_schemas.errors import Code, refusal

Reader = Callable[[Request], Awaitable[None]]
"""Refuses whoever may not read."""


async def anybody(_: Request) -> None:
    """On this machine: the edge listens on its loopback alone, and no series names anybody."""


class Scrapers:
    """Where the edge may be reached from elsewhere: whoever has the token of the file for scrapers, or an operator who may read.

    How busy all tenants are together is not for an operator of one of several: then it is the token alone.
    """

    def __init__(self, token: str, operator: Operator | None) -> None:
        self._token, self._operator = token.encode(), operator

    async def __call__(self, request: Request) -> None:
        """Refuses UNAUTHENTICATED or POLICY_DENIED."""
        given = bearer(request)
        # INVARIANT: who is not known reads no metrics where strangers come by
        # (test_where_issuers_prove_users_metrics_are_for_operators_and_scrapers).
        if given is not None and hmac.compare_digest(given.encode(), self._token):
            return
        if given is None or self._operator is None:
            raise refusal(
                Code.UNAUTHENTICATED, "metrics are for scrapers that have the token", rule="http.metrics",
                ask="send Authorization: Bearer <the content of keys/metrics.token in the data folder>",
            )  # fmt: skip
        require(await self._operator.known(request), "read")


def metrics_route(
    read: Callable[[], Awaitable[bytes]], may: Reader, fault: Callable[[str, BaseException], None]
) -> Route:
    """The text format of Prometheus."""

    async def prometheus(request: Request) -> Response:
        await may(request)
        return Response(await read(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return Route("/metrics", answering(prometheus, fault))
