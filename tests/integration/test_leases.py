"""Leases of several replicas on one account: the last unit, windows that turn, clocks and caps that differ, answers that are lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client

from remit_broker.adapters.jetstream import Ack, JetStream, Unreachable
from remit_broker.adapters.kv_accounts import KvAccounts
from remit_broker.core.accounts import Hold
from remit_broker.core.caps import Caps, Whose, parse_caps
from remit_broker.testing import running_broker
from remit_schemas.budget import ONE_CALL, Budget
from remit_schemas.errors import Refusal
from tests.support.local_nats import local_nats

ANN = Whose("default", "ann", "desk", "")
START = 1_800_000_030.0
"""In the middle of a minute."""


class Clock:
    def __init__(self, off: float = 0.0) -> None:
        self.at, self.off = START, off

    def now(self) -> float:
        return self.at + self.off

    def monotonic(self) -> float:
        return self.at


class LosesAnswers(JetStream):
    """Some publishes have no answer: half of those were stored."""

    def __init__(self, nc: Client, rng: random.Random, share: float) -> None:
        super().__init__(nc)
        self._rng, self._share, self.lost = rng, share, 0

    async def publish(self, *args: Any, **kwargs: Any) -> Ack:
        if self._rng.random() >= self._share:
            return await super().publish(*args, **kwargs)
        self.lost += 1
        if self._rng.random() < 0.5:
            await super().publish(*args, **kwargs)
        raise Unreachable("no answer")


async def replica(js: JetStream, caps: Caps, clock: Clock, name: str) -> KvAccounts:
    accounts = KvAccounts(js, caps, clock, name)
    accounts.skew = float("inf")
    return await accounts.start(1, lambda where, error: None)


@asynccontextmanager
async def store(folder: Path) -> AsyncIterator[Client]:
    async with local_nats(folder) as server:
        yield await server.connect()


async def test_of_two_replicas_that_race_for_the_last_unit_one_gets_it(tmp_path: Path) -> None:
    caps = parse_caps({"user": {"default": {"day": "calls=1"}}})
    async with store(tmp_path) as nc:
        clock = Clock()
        replicas = [await replica(JetStream(nc), caps, clock, name) for name in ("one", "two", "three")]
        for number in range(40):
            whose = ANN._replace(user=f"u{number}")
            wishes = [one.reserve(whose, ONE_CALL) for one in replicas for _ in range(4)]
            ends = await asyncio.gather(*wishes, return_exceptions=True)
            refused = [end for end in ends if isinstance(end, Refusal)]
            assert len(refused) == len(ends) - 1 and {no.body.rule for no in refused} == {"caps.user.day"}
        for one in replicas:
            await one.stop()


@pytest.mark.parametrize("seed", range(6))
async def test_lost_answers_turning_windows_and_skewed_clocks_never_exceed_a_cap(tmp_path: Path, seed: int) -> None:
    """Whatever is lost errs towards too little: in no window is more reserved and spent than its cap."""
    rng, cap = random.Random(seed), 60
    caps = parse_caps({"user": {"default": {"minute": f"calls={cap}"}}})
    async with store(tmp_path) as nc:
        clocks = [Clock(), Clock(1.5), Clock(-1.5)]
        stores = [LosesAnswers(nc, rng, 0.15) for _ in clocks]
        replicas = [
            await replica(js, caps, clock, str(n)) for n, (js, clock) in enumerate(zip(stores, clocks, strict=True))
        ]
        taken: dict[int, int] = {}
        refused, windows = set(), set()

        async def call(accounts: KvAccounts) -> None:
            try:
                reservation = await accounts.reserve(ANN, Budget(0, 0, rng.randint(1, 4)))
            except Refusal as no:
                refused.add(no.body.rule)
                return
            ((_, part, need),) = (Hold(*hold) for hold in reservation.holds)
            windows.add(part.window)
            taken[part.window] = taken.get(part.window, 0) + need.calls
            await asyncio.sleep(0)
            spent = rng.randint(0, need.calls)
            accounts.settle(reservation, Budget(0, 0, spent))
            taken[part.window] -= need.calls - spent

        for _ in range(30):
            await asyncio.gather(*(call(rng.choice(replicas)) for _ in range(12)))
            assert all(count <= cap for count in taken.values()), taken
            step = rng.choice([0.0, 0.3, 2.5, 7.0])
            for clock in clocks:
                clock.at += step
            if rng.random() < 0.3:
                number = rng.randrange(3)  # killed: what it had leased stays counted
                await replicas[number].stop() if rng.random() < 0.5 else None
                replicas[number] = await replica(stores[number], caps, clocks[number], f"{number}.{rng.random()}")
        assert len(windows) > 1 and sum(js.lost for js in stores) > 5 and "caps.user.minute" in refused
        for one in replicas:
            await one.stop()


async def test_a_write_whose_answer_was_lost_is_not_lost_for_good(tmp_path: Path) -> None:
    """The lease is stored and nobody knows: the next one builds on it, and the whole cap can be used."""
    caps = parse_caps({"user": {"default": {"day": "calls=8"}}})
    async with store(tmp_path) as nc:
        js = JetStream(nc)
        accounts, publish, lose = await replica(js, caps, Clock(), "one"), js.publish, True

        async def deaf(*args: Any, **kwargs: Any) -> Ack:
            nonlocal lose
            ack = await publish(*args, **kwargs)
            if lose:
                lose = False
                raise Unreachable("no answer")
            return ack

        js.publish = deaf  # type: ignore[method-assign]
        with pytest.raises(Refusal) as no:
            await accounts.reserve(ANN, Budget(0, 0, 5))
        assert no.value.body.rule == "caps.unavailable" and no.value.body.retryable
        for _ in range(8):
            accounts.settle(await accounts.reserve(ANN, ONE_CALL), ONE_CALL)
        with pytest.raises(Refusal) as full:
            await accounts.reserve(ANN, ONE_CALL)
        assert full.value.body.rule == "caps.user.day"
        await accounts.stop()


async def test_a_broker_whose_clock_is_off_refuses_capped_calls(tmp_path: Path) -> None:
    async with running_broker(tmp_path, {"caps": {"user": {"default": {"day": "calls=9"}}}}) as lab:
        accounts, real = lab.broker.accounts, lab.broker.ports.clock
        accounts.settle(await accounts.reserve(ANN, ONE_CALL), ONE_CALL)

        class Ahead:
            def now(self) -> float:
                return real.now() + 86_400.0

            def monotonic(self) -> float:
                return real.monotonic()

        accounts._clock = Ahead()
        await accounts.look_at_clock()
        with pytest.raises(Refusal) as off:
            await accounts.reserve(ANN, ONE_CALL)
        assert (off.value.body.code, off.value.body.rule) == ("LEDGER_UNAVAILABLE", "caps.clock")
        assert "caps" in lab.broker.health.problems()
        accounts._clock = real
        await accounts.look_at_clock()
        await accounts.reserve(ANN, ONE_CALL)
        (row,) = await accounts.report("default")
        assert row["spent"]["calls"] + row["held"]["calls"] == 2, "tomorrow has not begun for anybody"


async def test_replicas_with_different_caps_say_so(tmp_path: Path) -> None:
    async with store(tmp_path) as nc:
        clock = Clock()
        one = await replica(JetStream(nc), parse_caps({"user": {"default": {"day": "calls=50"}}}), clock, "one")
        two = await replica(JetStream(nc), parse_caps({"user": {"default": {"day": "calls=90"}}}), clock, "two")
        await one.reserve(ANN, ONE_CALL)
        assert one.trouble is None
        await two.reserve(ANN, ONE_CALL)
        assert two.trouble is not None and "ann.day: replica one goes by 50 calls, this one by 90 calls" in two.trouble
        for accounts in (one, two):
            await accounts.stop()
