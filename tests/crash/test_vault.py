"""kill -9 in the middle of an erasure: it is completed by whoever starts next, and what was half gone comes back for nobody."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from tests.crash.test_failpoints import _connected
from tests.support.process import process_lab

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("point", ["erasing", "shredded"])
async def test_a_broker_killed_in_an_erasure_completes_it_when_it_starts_again(tmp_path: Path, point: str) -> None:
    async with process_lab(tmp_path) as lab:
        text = lab.config.read_text(encoding="utf-8")
        lab.config.write_text(text.replace("# on = false", "on = true"), encoding="utf-8")
        await lab.start(failpoint=point)
        await lab.agent("desk")
        await lab.agent("worker")
        desk, worker = await _connected(lab)
        txn, grant = await lab.grant("desk", "agent/worker/work")
        await desk.call("agent/worker/work", txn, grant, {"n": 1})
        hop = next(one["hop"] for one in await lab.records(txn) if one["kind"] == "hop.opened")
        shown = await lab.api("GET", f"/api/vault/{txn}.{hop}")
        assert [one["kept"] for one in shown["contents"]] == [True, True]
        await desk.close()
        await worker.close()
        with suppress(Exception):
            await lab.api("POST", "/api/vault/erase", {"user": "ann", "reason": "asked for it"})
        assert await lab.died() == -signal.SIGKILL
        await lab.start()
        async with asyncio.timeout(30):
            while (told := await lab.api("GET", "/api/vault"))["erasing"]:
                await asyncio.sleep(0.05)
        assert [one["user"] for one in told["erased"]] == ["ann"]
        shown = await lab.api("GET", f"/api/vault/{txn}.{hop}")
        assert [one["kept"] for one in shown["contents"]] == [False, False]
        assert list((tmp_path / "data" / "vault").iterdir()) == []
