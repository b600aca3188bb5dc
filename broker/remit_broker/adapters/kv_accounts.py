"""Accounts in a JetStream key-value bucket: leased in slices by compare-and-set, served from memory.

One entry per (tenant, kind, name, window) with the account of the newest window; the bucket ``accounts`` in CORE. Reads are
leader reads. Whatever cannot be read or written refuses the call: nobody spends what is not known to be there.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import msgspec

from remit_broker.adapters.jetstream import (
    EXPECT_STREAM,
    EXPECT_SUBJECT,
    IN_FLIGHT,
    WRONG_LAST_SEQUENCE,
    ApiError,
    JetStream,
    Unreachable,
)
from remit_broker.adapters.tasks import ended
from remit_broker.core.accounts import (
    Account,
    Cap,
    Hold,
    Key,
    Lease,
    Reservation,
    Slice,
    bounds,
    disagreement,
    give_back,
    grant,
    report,
    turned,
)
from remit_broker.core.caps import Caps, Whose
from remit_broker.core.times import rfc3339, seconds_of
from remit_broker.ports import Clock
from remit_schemas.budget import UNITS, ZERO, Budget
from remit_schemas.errors import Code, Refusal, refusal
from remit_schemas.names import token

STREAM: Final = "KV_accounts"
PREFIX: Final = "$KV.accounts."
ATTEMPTS: Final = 64
"""Lost races after which a lease is given up: every one of them is somebody else's success."""
IDLE: Final = 2.0
"""Seconds without a reservation after which what is not used goes back."""
TELL: Final = 5.0
"""Seconds after which a busy slice says what it has spent, for those who look at budgets."""
TICK: Final = 0.25
SKEW: Final = 2.0
"""Seconds that this broker's clock may be off that of the NATS server which keeps the accounts."""
CLOCK_EVERY: Final = 10.0
"""Seconds between two looks at that clock."""
_KEEP: Final = 70 * 86400 * 10**9
_LONGEST_TOKEN: Final = 200

T = TypeVar("T")
Fault = Callable[[str, BaseException], None]


class Stored(msgspec.Struct, frozen=True):
    """An entry of the bucket."""

    key: Key
    account: Account


_decode = msgspec.json.Decoder(Stored).decode


class _Local:
    """What this replica knows of one account: its slice, and the entry as it was last seen, with its sequence."""

    __slots__ = ("cap", "key", "lock", "part", "seen", "told")

    def __init__(self, key: Key, cap: Cap, window: int) -> None:
        self.key, self.cap = key, cap
        self.part = Slice(cap, window)
        self.seen: tuple[Account | None, int] | None = None
        self.lock = asyncio.Lock()
        self.told = (0.0, ZERO)


class KvAccounts:
    """The accounts as one replica serves them (port ``Accounts``)."""

    def __init__(self, js: JetStream, caps: Caps, clock: Clock, replica: str) -> None:
        self._js, self._caps, self._clock, self._replica = js, caps, clock, replica
        self._locals: dict[Key, _Local] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._differ: dict[Key, str] = {}
        self._clock_off = ""
        self._clock_due = 0.0
        self.skew = SKEW

    @property
    def trouble(self) -> str | None:
        """Why caps do not count as they should: clocks or replicas do not agree."""
        return self._clock_off or next((f"{'.'.join(key)}: {why}" for key, why in self._differ.items()), None)

    async def start(self, replicas: int, fault: Fault) -> KvAccounts:
        """Make or check the bucket, where there are caps. Raises ConfigError."""
        if self._caps:
            await self._js.ensure(_settings(replicas))
            await self.look_at_clock()
            self._task = asyncio.create_task(self._keep(fault))
        return self

    async def stop(self) -> None:
        """Give back what was not used. Where that fails it counts as spent until the windows end."""
        if self._task is not None:
            await ended(self._task)
        for local in list(self._locals.values()):
            with contextlib.suppress(Refusal):
                await self._return(local)

    async def reserve(self, whose: Whose, amount: Budget) -> Reservation:
        """Reserve in every account, or in none. No I/O while the slices last.

        Refuses BUDGET_EXCEEDED where a cap does not allow it, LEDGER_UNAVAILABLE where nobody can say.
        """
        if not self._caps:
            return Reservation()
        # INVARIANT: a clock that is off turns no window for everybody (test_a_broker_whose_clock_is_off_refuses_capped_calls).
        if self._clock_off:
            raise _unavailable(
                self._clock_off, "caps.clock", "this broker's clock is off, so it cannot tell which window it is"
            )
        wanted = [(key, cap, cap.needed(amount)) for key, cap in self._caps.of(whose)]
        while True:
            now = self._clock.now()
            parts = [(key, cap, self._local(key, cap, now).part, need) for key, cap, need in wanted]
            short = [(key, cap, need) for key, cap, part, need in parts if not part.fits(need)]
            if not short:
                return Reservation(tuple(self._hold(key, part, need) for key, _, part, need in parts))
            for key, cap, need in short:
                await self._lease(key, cap, need)

    def settle(self, reservation: Reservation, spent: Budget) -> None:
        """End a reservation at what was spent; nothing spent gives it back. What was more blocks what follows."""
        for key, part, need in reservation.holds:
            cost = part.cap.counted(spent)
            within = cost.meet(need)
            part.settle(need, within)
            if cost != within:
                # Where the window has turned since, the excess is counted in the one that has begun.
                self._local(key, part.cap, self._clock.now()).part.spent += cost.minus(need)
                self._wake.set()

    async def report(self, tenant: str) -> list[dict[str, Any]]:
        """Every account that has a cap and was used, or that the configuration names. Refuses LEDGER_UNAVAILABLE."""
        if not self._caps:
            return []
        now = self._clock.now()
        stored = await _asked(self._all())
        keys = {key for key in (*stored, *self._caps.named(tenant), *self._locals) if key.tenant == tenant}
        rows = [self._row(key, cap, stored.get(key), now) for key in keys if (cap := self._caps.cap(key))]
        return sorted(rows, key=lambda row: (row["kind"], row["name"], row["ends"]))

    # The slice

    def _local(self, key: Key, cap: Cap, now: float) -> _Local:
        """The slice of the window that it is now; a slice of an earlier one is of no use any more."""
        start, _ = bounds(key.window, now)
        local = self._locals.get(key)
        if local is None:
            local = self._locals[key] = _Local(key, cap, start)
        elif local.part.window < start:
            local.part = Slice(cap, start)
        return local

    def _hold(self, key: Key, part: Slice, need: Budget) -> Hold:
        part.hold(need)
        part.asked = self._clock.monotonic()
        return Hold(key, part, need)

    async def _lease(self, key: Key, cap: Cap, need: Budget) -> None:
        local = self._local(key, cap, self._clock.now())
        async with local.lock:
            if self._local(key, cap, self._clock.now()).part.fits(need):
                return

            def more(account: Account, part: Slice) -> Account:
                granted = grant(account, self._replica, part, need)
                if granted is None:
                    raise self._exceeded(key, cap, account, need)
                part.asked = self._clock.monotonic()
                return granted

            before = local.part.granted
            await self._change(local, more)
            local.part.last = local.part.granted.minus(before)

    async def _return(self, local: _Local) -> None:
        async with local.lock:
            part = local.part
            if part.granted == ZERO and part.busy == ZERO:
                return
            # INVARIANT: what is being given back is not used any more, whatever becomes of the write
            # (test_what_is_being_given_back_is_not_used_meanwhile).
            part.granted = part.busy
            part.last = ZERO
            returned = ZERO

            def less(account: Account, part: Slice) -> Account:
                nonlocal returned
                after = give_back(account, self._replica, part)
                returned = part.spent if self._replica not in after.leases else ZERO
                return after

            await self._change(local, less)
            # Where the lease has ended, what it had spent is in the account itself now.
            local.part.spent = local.part.spent.minus(returned)

    async def _tell(self, local: _Local) -> None:
        async with local.lock:
            await self._change(local, lambda account, part: report(account, self._replica, part))

    async def _change(self, local: _Local, how: Callable[[Account, Slice], Account]) -> None:
        """Write what ``how`` makes of the account, by compare-and-set. The caller has the lock."""
        for _ in range(ATTEMPTS):
            stored, seq = local.seen if local.seen is not None else await _asked(self._read(local.key))
            local.seen = None
            account = turned(stored, local.part.window)
            if account.window > local.part.window:
                # Another replica's clock says that the next window has begun: nothing more is taken from the old one.
                local.part = Slice(local.cap, account.window)
            part = local.part
            if differs := disagreement(account, self._replica, part.cap):
                self._differ[local.key] = differs
            else:
                self._differ.pop(local.key, None)
            after = how(account, part)
            if written := await _asked(self._write(local.key, after, seq)):
                lease = after.leases.get(self._replica)
                part.granted = ZERO if lease is None else lease.granted
                local.seen = (after, written)
                local.told = (self._clock.monotonic(), part.spent)
                return
        raise _unavailable("too many write it at once")

    # The store

    async def _read(self, key: Key) -> tuple[Account | None, int]:
        message = await self._js.last(STREAM, _subject(key))
        return (None, 0) if message is None else (_decode(message.data).account, message.seq)

    async def _write(self, key: Key, account: Account, after: int) -> int:
        """The sequence of the new entry, 0 where the entry is not the one at ``after`` any more."""
        headers = {EXPECT_STREAM: STREAM, EXPECT_SUBJECT: str(after)}
        ack = await self._js.publish(_subject(key), msgspec.json.encode(Stored(key, account)), headers)
        if ack.error is None:
            return ack.seq
        if ack.error.err_code in (WRONG_LAST_SEQUENCE, IN_FLIGHT):
            return 0
        raise ApiError(ack.error.err_code, ack.error.description)

    async def _all(self) -> dict[Key, Account]:
        state = await self._js.state(STREAM)
        if not state["messages"]:
            return {}
        entries = await self._js.read(STREAM, PREFIX + ">", 0, state["last_seq"])
        return {found.key: found.account for found in (_decode(entry.data) for entry in entries)}

    # Beside the calls

    async def _keep(self, fault: Fault) -> None:
        """Say what was overrun, give back what nobody needs, forget what is over."""
        said = ""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK):
                    await self._wake.wait()
            self._wake.clear()
            if self._clock.monotonic() >= self._clock_due:
                with contextlib.suppress(Refusal):
                    await self.look_at_clock()
            for local in list(self._locals.values()):
                try:
                    await self._tend(local)
                    said = ""
                except Refusal as error:
                    if said != error.cause:
                        said = error.cause
                        fault("accounts", error)
                except Exception as error:
                    fault("accounts", error)

    async def look_at_clock(self) -> None:
        """Compare this broker's clock with that of the server that keeps the accounts."""
        self._clock_due = self._clock.monotonic() + CLOCK_EVERY
        before = self._clock.now()
        theirs = seconds_of((await _asked(self._js.api(f"STREAM.INFO.{STREAM}")))["ts"])
        off = max(before - theirs, theirs - self._clock.now())
        self._clock_off = f"this clock and the NATS server's are {off:.1f} s apart" if off > self.skew else ""

    async def _tend(self, local: _Local) -> None:
        part, now = local.part, self._clock.monotonic()
        idle = now - part.asked > IDLE
        past = part.window < bounds(local.key.window, self._clock.now())[0]
        if past or (idle and part.granted == part.busy == ZERO):
            # Nobody may be about to write it; reservations in a slice that is past end in that slice alone.
            if not local.lock.locked():
                self._locals.pop(local.key, None)
                self._differ.pop(local.key, None)
        elif not part.busy.within(part.granted):
            await self._tell(local)
        elif idle and (part.held == ZERO or part.free != ZERO):
            await self._return(local)
        elif now - local.told[0] > TELL and local.told[1] != part.spent:
            await self._tell(local)

    # What people see

    def _row(self, key: Key, cap: Cap, stored: Account | None, now: float) -> dict[str, Any]:
        start, end = bounds(key.window, now)
        account = turned(stored, start)
        leases = dict(account.leases)
        local = self._locals.get(key)
        if local is not None and local.part.window == account.window:
            part = local.part
            leases[self._replica] = Lease(part.granted.join(part.busy), part.spent, part.held)
            account = Account(window=account.window, used=account.used, leases=leases)
        spent, held = account.used, ZERO
        for lease in leases.values():
            spent, held = spent + lease.spent, held + lease.held
        units = [unit for unit in UNITS if getattr(cap, unit) is not None]
        amounts = {
            "cap": cap.budget,
            "spent": spent,
            "held": held,
            "leased": account.taken.minus(spent + held),
            "left": account.left(cap),
        }
        return {
            "kind": key.kind,
            "name": key.name,
            "window": key.window,
            "ends": rfc3339(end),
            **{name: {unit: getattr(amount, unit) for unit in units} for name, amount in amounts.items()},
        }

    def _exceeded(self, key: Key, cap: Cap, account: Account, need: Budget) -> Refusal:
        now = self._clock.now()
        _, end = bounds(key.window, now)
        left = account.left(cap)
        wait = max(1.0, round(end - now, 3))
        # What others have used of an account that users share is theirs: only its operator is told.
        shown = f", left are {cap.shown(left)}" if key.kind == "user" else ""
        fits = need.within(cap.budget)
        return refusal(
            Code.BUDGET_EXCEEDED,
            f"the cap of {key.kind} {key.name} for a {key.window} is {cap.shown(cap.budget)}{shown}; "
            f"this call needs {cap.shown(need)}",
            rule=f"caps.{key.kind}.{key.window}",
            ask=f"wait until {rfc3339(end)}, when the next {key.window} begins, or ask an operator for a larger cap"
            if fits else "ask for less in one call, or ask an operator for a larger cap",
            retry_after=wait if fits else None,
            cause=f"{key}: left {left}, used {account.used}, {len(account.leases)} leases",
        )  # fmt: skip


async def _asked(work: Awaitable[T]) -> T:
    """An answer of the store. Refuses LEDGER_UNAVAILABLE where there is none that can be believed.

    INVARIANT: what is not known to be there is not spent (test_without_the_bus_a_capped_call_is_refused).
    """
    try:
        return await work
    except (Unreachable, ApiError, msgspec.MsgspecError, TypeError, KeyError) as error:
        raise _unavailable(repr(error)) from None


def _unavailable(
    cause: str, rule: str = "caps.unavailable", what: str = "the accounts of caps cannot be read or written"
) -> Refusal:
    ask = "try again shortly"
    return refusal(Code.LEDGER_UNAVAILABLE, what, rule=rule, ask=ask, retry_after=1.0, cause=cause)


def _subject(key: Key) -> str:
    return PREFIX + ".".join((key.tenant, key.kind, _name(key.name), key.window))


def _name(name: str) -> str:
    """The name as one token; a long one by its digest, with a beginning that no token has."""
    plain = token(name)
    return plain if len(plain) <= _LONGEST_TOKEN else "==" + hashlib.sha256(name.encode()).hexdigest()


def _settings(replicas: int) -> dict[str, Any]:
    """A key-value bucket's stream. An entry that nobody writes for longer than any window lasts is gone by itself."""
    return {
        "name": STREAM,
        "subjects": [PREFIX + ">"],
        "retention": "limits",
        "storage": "file",
        "max_msgs_per_subject": 1,
        "max_age": _KEEP,
        "discard": "new",
        "num_replicas": replicas,
        "deny_delete": True,
        "allow_direct": False,
    }
