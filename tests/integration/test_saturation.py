"""A broker with more to do than its processor can: it is slow in order, and it hears what it must hear."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from remit_broker.bench import peers
from remit_broker.bench.measure import round_of
from remit_broker.bench.site import TXNS, caller, site

IN_FLIGHT = 1500


@pytest.mark.timeout(240)
async def test_a_saturated_broker_hears_its_own_heartbeat(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        # One caller may have a quarter in hand.
        place = await stack.enter_async_context(site(tmp_path, "default", concurrency=6 * IN_FLIGHT))
        nc, connection = await peers.connect_agent(place.told)
        stack.push_async_callback(nc.close)
        call = await caller(nc, connection, await place.grants(TXNS))
        # A refusal raises: a broker that is merely busy refuses nothing.
        samples = await round_of(call, 2 * IN_FLIGHT, IN_FLIGHT)
        # It was saturated: what waits in order takes many times as long as one call alone.
        assert samples.quantile(0.5) > 100_000
        assert (await place.http.get("/readyz")).json()["problems"] == {}
