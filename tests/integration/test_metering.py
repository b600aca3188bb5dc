"""From the prices in the configuration to the close record: what was measured is charged, what nobody measured is said to be so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from remit import Agent, Hop
from remit_broker.cli.show import hop_line
from remit_broker.core.fold import fold_all
from remit_broker.core.spans import closed as span_of
from remit_broker.testing import running_broker
from remit_schemas.budget import Budget
from remit_schemas.records import HopClosed, HopOpened, parse_record

CONFIG = {
    "models": {"default": "in=1,out=2,call=0.05", "tiny*": "in=100,out=200"},
    "prices": {"agent/thinker/*": "usd=0.003,calls=1"},
}


async def test_an_agent_that_reports_no_cost_is_unmetered(tmp_path: Path) -> None:
    async with running_broker(tmp_path, CONFIG) as lab:
        me, desk = Agent("thinker", credentials=await lab.agent("thinker")), await lab.agent("desk")

        def model() -> dict[str, Any]:
            return {"model": "tiny-1", "usage": {"input_tokens": 10, "output_tokens": 5}}

        @me.skill
        async def metered(hop: Hop) -> None:
            hop.meter(model)()

        @me.skill
        async def unused(hop: Hop) -> None:
            hop.meter(model)

        @me.skill
        async def silent(hop: Hop) -> None:
            model()

        @me.skill(models=False)
        async def plain(hop: Hop) -> None:
            return None

        opened = await lab.grant("desk", "agent/**")
        async with me, Agent("desk", credentials=desk).task(opened.grant) as task:
            for skill in ("metered", "unused", "silent", "plain"):
                await task.call(f"agent/thinker/{skill}")
        records = await lab.records(opened.txn)
        fold_all(records)
        begun = {r["hop"]: r for r in records if r["kind"] == "hop.opened"}
        ends = {begun[r["hop"]]["resource"].split("/")[2]: r for r in records if r["kind"] == "hop.closed"}
        assert {name: (end["cost"]["usd_micros"], end["unmetered"]) for name, end in ends.items()} == {
            "metered": (2_000, False), "unused": (0, False), "silent": (3_000, True), "plain": (0, False),
        }  # fmt: skip
        assert ends["metered"]["cost"]["tokens"] == 15
        # It is shown wherever the hop is.
        silent_end = ends["silent"]
        assert "unmetered" in hop_line(begun[silent_end["hop"]], [silent_end]).plain
        assert "unmetered" not in hop_line(begun[ends["plain"]["hop"]], [ends["plain"]]).plain
        evidence = json.dumps(await lab.broker.evidence("default", opened.txn))
        assert evidence.count('"unmetered": true') == 1
        one, end = parse_record(begun[silent_end["hop"]]), parse_record(silent_end)
        assert isinstance(one, HopOpened) and isinstance(end, HopClosed)
        assert span_of(one, end, fold_all(records)).attributes["remit.unmetered"] is True


async def test_agents_are_told_the_prices_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    async with running_broker(tmp_path, CONFIG) as lab:
        me = Agent("thinker", credentials=await lab.agent("thinker"))

        @me.skill
        async def think(hop: Hop) -> None:
            return None

        async with me:
            assert me._prices.of("tiny-2").cost((1_000_000, 0)) == 100_000_000
            assert me._prices.of("unheard").call == Budget(50_000, 0, 0).usd_micros
