"""The registries of all tenants: names may repeat from one to another, keys may not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from nats.js import JetStreamContext

from remit_broker.adapters.registry import KvRegistry
from remit_broker.core.registry import Principal


class Registries:
    """One mirror for each tenant of the configuration; what a tenant that is not in it once had is not looked at."""

    def __init__(self, registries: Iterable[KvRegistry]) -> None:
        """``registries`` have one tenant each."""
        self._of = {one.tenant: one for one in registries}
        for one in self._of.values():
            one.holder = self._holder

    def __iter__(self) -> Iterator[KvRegistry]:
        return iter(self._of.values())

    def of(self, tenant: str) -> KvRegistry:
        """That of one tenant."""
        return self._of[tenant]

    async def start(self, js: JetStreamContext, replicas: int, fault: Callable[[str, BaseException], None]) -> None:
        """Mirror all; returns when everything in them has been read."""
        for one in self:
            await one.start(js, replicas, fault)

    async def stop(self) -> None:
        """Stop mirroring."""
        for one in self:
            await one.stop()

    def by_nkey(self, public: str) -> Principal | None:
        """The one principal with this public nkey; None where there is none, and where two tenants claim it.

        INVARIANT: a key that is in two tenants is nobody's (test_a_key_that_two_tenants_claim_lets_nobody_in): two replicas may
        have registered it at the same moment.
        """
        found = self._holders(public)
        return found[0] if len(found) == 1 else None

    def _holder(self, public: str) -> Principal | None:
        return next(iter(self._holders(public)), None)

    def _holders(self, public: str) -> list[Principal]:
        return [found for one in self if (found := one.by_nkey(public)) is not None]
