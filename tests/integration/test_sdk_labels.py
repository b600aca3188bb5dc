"""Ceilings of labels with the SDK: of one call, of one that goes on after a question, of a detached one and of a whole task."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from remit import Agent, Hop, InputNeeded, Refused
from remit_broker.testing import Lab, running_broker
from tests.support.raw import arena_on, tool

READ, WORK = "mcp/crm/read", "agent/clerk/work"
CONFIG = {"labels": {"mcp/crm/*": ["confidential"]}}
POLICY = '@id("all")\n@reason("all")\npermit (principal, action, resource);\n'


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with running_broker(tmp_path, CONFIG, [("all.cedar", POLICY)]) as lab, arena_on(lab) as arena:
        crm = await arena.agent("crm", "mcp")
        crm.handlers["read"] = lambda taken: taken.done("a record")
        await crm.serve(tool("read"))
        clerk = Agent("clerk", await lab.agent("clerk"))

        @clerk.skill
        async def work(hop: Hop, asks: bool = False) -> Any:
            if asks:
                await hop.ask("shall I?")
            try:
                return await hop.call(READ)
            except Refused as no:
                return no.rule

        async with clerk:
            yield lab


async def test_labels_of_a_call_are_the_ceiling_of_its_callee(lab: Lab) -> None:
    """In tasks of their own: what has come back once is on all that the boss sends from then on."""
    boss = Agent("boss", await lab.agent("boss"))
    wishes: list[tuple[list[str] | None, str]] = [
        (None, "a record"), (["confidential"], "a record"), (["internal"], "labels.ceiling"),
    ]  # fmt: skip
    for labels, told in wishes:
        root = await lab.grant("boss", "mcp/**", "agent/**")
        async with boss.task(root.grant) as task:
            assert await task.call(WORK, labels=labels) == told
    root = await lab.grant("boss", "mcp/**", "agent/**")
    async with boss.task(root.grant) as task:
        with pytest.raises(InputNeeded) as asked:
            await task.call(WORK, asks=True, labels=[])
        assert await asked.value.answer("yes") == "labels.ceiling", "it goes on within the ceiling that it began with"
        detached = await task.detach(WORK, budget="usd=0.1,calls=5", labels=["web"])
        assert await detached.result() == "labels.ceiling"


async def test_labels_of_a_task_are_the_ceiling_of_all_of_it(lab: Lab) -> None:
    boss = Agent("boss", await lab.agent("boss"))
    root = await lab.grant("boss", "mcp/**", "agent/**", labels=["internal"])
    async with boss.task(root.grant) as task:
        with pytest.raises(Refused) as no:
            await task.call(READ)
        assert (no.value.code, no.value.rule) == ("OUT_OF_SCOPE", "labels.ceiling")
        assert await task.call(WORK, labels=["*"]) == "labels.ceiling"
