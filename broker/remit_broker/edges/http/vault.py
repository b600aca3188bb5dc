"""``/api/vault``: what was sent and answered, shown to whoever may see it; and that it goes, or must stay, for a person."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec
from starlette.requests import Request

from remit_broker.core.admin import AdminRecord
from remit_broker.core.issuers import Ability
from remit_broker.core.revocations import Entry, State, What
from remit_broker.core.times import rfc3339
from remit_broker.core.vault import Content, Kind, Slot, Standing, contents, disclosure, standing
from remit_broker.edges.http.guard import typed
from remit_broker.operator_ports import AdminLog, Index
from remit_broker.ports import Ports
from remit_schemas.errors import Code, Refusal, refusal

if TYPE_CHECKING:
    from remit_broker.edges.http.desk import Call

MAX_WHY: Final = 512
KINDS: Final[tuple[Kind, ...]] = ("arguments", "results")


class Store(Protocol):
    """Where the contents lie."""

    async def get(self, slot: Slot) -> bytes | None:
        """What is kept, or None. Refuses LEDGER_UNAVAILABLE, and INTERNAL for what was not sealed there."""

    async def shred(self, tenant: str, user: str, between: Callable[[], None]) -> tuple[bool, int]:
        """Destroy the key of a person, then what lies under it."""

    async def expire(self, tenant: str, kind: Kind, before: float, spared: frozenset[str]) -> int:
        """Forget what was kept before a moment, but for the users ``spared``."""


class Person(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``POST /api/vault/erase``, ``…/hold`` and ``…/release``: whose data, and why."""

    user: str
    reason: str


class VaultDesk:
    """The vault of one tenant. ``store`` is None where there is none: nothing is shown then, and nobody erased."""

    def __init__(
        self,
        tenant: str,
        ports: Ports,
        kept: tuple[AdminLog, Index, Callable[[], Awaitable[None]]],
        store: Store | None,
        terms: Callable[[str, Kind], float],
    ) -> None:
        self._tenant, self._ports, self._store, self._terms = tenant, ports, store, terms
        self._admin, self._index, self._caught_up = kept
        self._erasing = asyncio.Lock()

    async def told(self) -> dict[str, Any]:
        """What is kept for how long, who is held, and who was erased."""
        found = await self._standing()
        return {
            "on": self._store is not None,
            "keeps": {kind: self._terms(self._tenant, kind) for kind in KINDS},
            "holds": [_said(record) for record in found.holds.values()],
            "erasing": [_said(record) for record in found.erasing.values()],
            "erased": [_said(record) for record in found.erased.values()],
        }

    async def shown(self, hop: str) -> dict[str, Any]:
        """The contents of one hop, each verified against the record that commits to it. Refuses UNKNOWN_TARGET."""
        await self._caught_up()
        txn = await self._txn_of(hop)
        records = [entry["record"] for entry in await self._index.chain(self._tenant, txn)]
        mine = [one for one in contents(records) if one.slot.hop == hop.rpartition(".")[2]]
        return {"txn": txn, "hop": hop, "user": records[0]["user"], "contents": [await self._one(one) for one in mine]}

    async def disclosed(self, records: list[dict[str, Any]], hops: Iterable[str] | None) -> list[dict[str, Any]]:
        """Of the records of a txn what is kept of ``hops`` (None: of all), each with what opens its commitment."""
        wanted = None if hops is None else frozenset(hops)
        found = []
        for one in contents(records):
            if wanted is not None and one.slot.hop not in wanted:
                continue
            text, _ = await self._verified(one)
            if text is not None:
                found.append(disclosure(one, text, self._ports.digester.salt(one.slot.txn, text)))
        return found

    async def erased(self, user: str) -> bool:
        """Whether what is kept of a person was erased."""
        found = await self._standing()
        return user in found.erased or user in found.erasing

    async def erase(self, wish: Person, who: str) -> dict[str, Any]:
        """Destroy the key of a person and all that lies under it. Refuses CONFLICT where somebody has it held, or there is no vault.

        INVARIANT: what is held is not erased, whichever of the two is asked first (test_a_hold_refuses_an_erasure).
        """
        _named(wish)
        if self._store is None:
            # INVARIANT: nobody is told that something was erased which lies there still
            # (test_without_a_vault_nothing_is_kept_or_erased).
            raise refusal(
                Code.CONFLICT, "the vault is switched off: what was kept in it before cannot be reached", rule="vault.off",
                ask="[vault] on = true in remit.toml, arguments = 0 and results = 0 to keep nothing more; then erase",
            )  # fmt: skip
        async with self._erasing:
            if (hold := (await self._standing()).holds.get(wish.user)) is not None:
                raise _held(hold)
            begun = await self._say("erasure", "erasing", wish, who)
            self._ports.failpoints.hit("erasing")
            return await self._finish(begun)

    async def hold(self, wish: Person, who: str) -> dict[str, Any]:
        """From now on nothing of a person is erased or forgotten. Refuses CONFLICT where it is being erased."""
        _named(wish)
        record = await self._say("hold", "held", wish, who)
        before = standing([one for one in await self._admin.history() if one.seq < record.seq])
        if (begun := before.erasing.get(wish.user)) is not None:
            raise refusal(
                Code.CONFLICT, f"the erasure of {wish.user[:64]} has begun: {begun.who} at {begun.at}", rule="vault.erasing",
                ask="what is kept from now on is held",
            )  # fmt: skip
        return _said(record)

    async def release(self, wish: Person, who: str) -> dict[str, Any]:
        """A person is held no longer. Refuses UNKNOWN_TARGET."""
        _named(wish)
        if wish.user not in (await self._standing()).holds:
            raise refusal(
                Code.UNKNOWN_TARGET,
                f"nobody has {wish.user[:64]!r} held",
                rule="vault.not-held",
                ask="remit vault list",
            )
        return _said(await self._say("hold", "released", wish, who))

    async def upkeep(self) -> int:
        """Complete what was begun, and forget what is old; how many messages went. Refuses LEDGER_UNAVAILABLE.

        INVARIANT: an erasure that was begun is completed, whatever died meanwhile
        (test_a_broker_killed_in_an_erasure_completes_it_when_it_starts_again).
        """
        if self._store is None:
            return 0
        gone = 0
        async with self._erasing:
            for begun in (await self._standing()).erasing.values():
                with contextlib.suppress(Held):
                    gone += (await self._finish(begun))["messages"]
        found = await self._standing()
        for kind in KINDS:
            before = self._ports.clock.now() - self._terms(self._tenant, kind)
            gone += await self._store.expire(self._tenant, kind, before, frozenset(found.holds))
        return gone

    async def _finish(self, begun: AdminRecord) -> dict[str, Any]:
        had, messages = False, 0
        wish = Person(user=begun.name, reason=begun.why)
        # Between a look and a record somebody may have asked for the opposite: the chain says who was first.
        before = standing([one for one in await self._admin.history() if one.seq < begun.seq])
        if (hold := before.holds.get(begun.name)) is not None:
            await self._say("erasure", "spared", wish, begun.who)
            raise _held(hold)
        if self._store is not None:
            between = lambda: self._ports.failpoints.hit("shredded")  # noqa: E731
            had, messages = await self._store.shred(self._tenant, begun.name, between)
        detail = msgspec.json.encode({"key": had, "messages": messages}).decode()
        done = await self._say("erasure", "erased", wish, begun.who, detail)
        return {**_said(done), "key": had, "messages": messages}

    async def _one(self, one: Content) -> dict[str, Any]:
        text, why = await self._verified(one)
        value = None if text is None else msgspec.json.decode(text)
        told = {"record": one.seq, "field": one.field, "kind": one.slot.kind, "digest": one.slot.digest}
        return {**told, "kept": text is not None, "why": why, "value": value}

    async def _verified(self, one: Content) -> tuple[bytes | None, str]:
        """The content, only if it is what the record commits to; else why there is none."""
        if one.replaced:
            return None, "policy replaced something in it: what was released instead is what is kept"
        text = None if self._store is None else await self._store.get(one.slot)
        if text is None:
            return None, "nothing is kept of it: never kept, forgotten after its time, or erased"
        # INVARIANT: what is shown is what the record commits to (test_what_is_shown_is_what_the_record_commits_to).
        if self._ports.digester.digest(one.slot.txn, text) != one.slot.digest:
            return None, "what is kept is not what the record commits to"
        return text, ""

    async def _txn_of(self, name: str) -> str:
        hits = [
            hit for hit in await self._index.hops_like(self._tenant, name.lower()) if hit.txn and hit.kind != "refused"
        ]
        exact = [hit for hit in hits if name in (hit.hop, f"{hit.txn}.{hit.hop}")]
        if len(exact) != 1:
            raise refusal(
                Code.UNKNOWN_TARGET, f"no hop {name[:64]!r} was opened" if not exact else f"several hops are called {name[:64]!r}",
                rule="vault.unknown-hop", ask="remit chain TXN names them; write <txn>.<hop>",
            )  # fmt: skip
        return str(exact[0].txn)

    async def _standing(self) -> Standing:
        return standing(await self._admin.history())

    async def _say(self, what: What, state: State, wish: Person, who: str, detail: str = "") -> AdminRecord:
        at = rfc3339(self._ports.clock.now())
        entry = Entry(
            kind=what, name=wish.user, who=who, at=at, why=wish.reason[:MAX_WHY], state=state, tenant=self._tenant,
            detail=detail,
        )  # fmt: skip
        return await self._admin.append(entry)


def _said(record: AdminRecord) -> dict[str, Any]:
    return {
        "user": record.name, "state": record.kind, "by": record.who, "at": record.at, "reason": record.why,
        "record": record.seq,
    }  # fmt: skip


class Held(Refusal):
    """Somebody has it held."""


def _held(hold: AdminRecord) -> Held:
    why = f": {hold.why}" if hold.why else ""
    no = refusal(
        Code.CONFLICT, f"what is kept of {hold.name[:64]} is held since {hold.at} by {hold.who}{why}", rule="vault.held",
        ask=f"whoever decides about the hold: remit vault release --user {hold.name[:64]} --reason …",
    )  # fmt: skip
    return Held(no.body, no.cause)


def _named(wish: Person) -> None:
    if not 0 < len(wish.user) <= 256 or not wish.user.isprintable():
        raise refusal(Code.MALFORMED, "that is no user", rule="vault.user", ask="the name as the records have it")
    if not wish.reason.strip():
        raise refusal(Code.MALFORMED, "no reason is given", rule="vault.reason", ask="say why: it is recorded")


async def _told(request: Request, at: Call) -> Any:
    return await at.desk.vault.told()


async def _shown(request: Request, at: Call) -> Any:
    return await at.desk.vault.shown(str(request.path_params["hop"]))


async def _erase(request: Request, at: Call) -> Any:
    return await at.desk.vault.erase(await typed(request, Person), at.who)


async def _hold(request: Request, at: Call) -> Any:
    return await at.desk.vault.hold(await typed(request, Person), at.who)


async def _release(request: Request, at: Call) -> Any:
    return await at.desk.vault.release(await typed(request, Person), at.who)


ROUTES: Final[tuple[tuple[str, str, Ability, Callable[[Request, Call], Awaitable[Any]]], ...]] = (
    ("GET", "/api/vault", "read", _told),
    # INVARIANT: who may read the records does not therefore see what was sent (test_a_viewer_sees_no_content).
    ("GET", "/api/vault/{hop}", "administer", _shown),
    ("POST", "/api/vault/erase", "administer", _erase),
    ("POST", "/api/vault/hold", "administer", _hold),
    ("POST", "/api/vault/release", "administer", _release),
)
READS: Final = (_erase, _hold, _release)
"""Those that read a body."""
