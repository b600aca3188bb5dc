"""Nobody said what it cost: the configured price is charged, in the task and in the accounts, however the call ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from remit_broker.core.fold import fold_all
from remit_broker.core.revocations import Entry
from remit_broker.testing import Lab, running_broker
from remit_schemas.envelope import Error, Result
from remit_schemas.errors import Code, refusal
from tests.support.raw import Taken, arena_on, skill, tool

PRICE = {"usd_micros": 200_000, "tokens": 50}
CONFIG = {
    "prices": {"*": "usd=0.2,tokens=50,calls=1"},
    "caps": {"user": {"default": {"day": "usd=10,tokens=10000,calls=100"}}},
}
TARGETS = {"tool": "mcp/files/read", "agent": "agent/helper/help"}


async def says_nothing(lab: Lab, taken: Taken) -> None:
    await taken.say(Result(value="done"))


async def fails(lab: Lab, taken: Taken) -> None:
    await taken.say(Result(value="it did not work", failed=True))


async def errs(lab: Lab, taken: Taken) -> None:
    no = refusal(Code.INTERNAL, "it broke", rule="helper.broke", ask="try again", effect="happened")
    await taken.say(Error(error=no.body))


async def is_stopped(lab: Lab, taken: Taken) -> None:
    at = "2026-01-01T00:00:00.000Z"
    await lab.broker.revocations.put(Entry(kind="user", name="ann", who="ops", at=at))


async def runs_out_of_time(lab: Lab, taken: Taken) -> None:
    """Says nothing at all."""


ENDS: dict[str, Callable[[Lab, Taken], Awaitable[None]]] = {
    "no report": says_nothing, "a failure": fails, "an error": errs, "cancelled": is_stopped, "the deadline": runs_out_of_time,
}  # fmt: skip


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("end", ENDS)
async def test_what_nobody_reported_is_charged_its_price_and_never_nothing(tmp_path: Path, end: str, kind: str) -> None:
    async with running_broker(tmp_path, CONFIG) as lab, arena_on(lab) as arena:
        alice, files, helper = (
            await arena.agent("alice"),
            await arena.agent("files", "mcp"),
            await arena.agent("helper"),
        )
        await files.serve(tool("read"))
        await helper.serve(skill("help"))
        root = await lab.grant("alice", "mcp/**", "agent/**", budget="usd=9,tokens=9000,calls=90")
        want = {"ttl_ms": 1500} if end == "the deadline" else {}
        calling = asyncio.ensure_future(alice.call(TARGETS[kind], root.txn, root.grant, want=want))
        await ENDS[end](lab, await (files if kind == "tool" else helper).took(root.txn))
        await calling
        charged = fold_all(await lab.records(root.txn)).totals.spent
        (row,) = await lab.broker.accounts.report("default")
        for unit, price in PRICE.items():
            assert getattr(charged, unit) >= price, f"{unit} in the task"
            assert row["spent"][unit] >= price, f"{unit} in the account"
        assert charged.calls >= 1 <= row["spent"]["calls"]
        assert row["held"] == {"usd_micros": 0, "tokens": 0, "calls": 0}
