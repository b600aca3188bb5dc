"""One broker per module of attacks: what a test does to its own txns and agents must not reach another test's."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from remit_broker.testing import running_broker
from tests.support.raw import Arena, arena_on


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def arena(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Arena]:
    """A broker with the starter's policy and raw agents. Tests that use it are marked ``asyncio(loop_scope="module")``."""
    # Large requests count as many: whoever tests what becomes of them is not to run into the rate of its caller.
    limits = {"limits": {"burst": 1_000_000}}
    async with running_broker(tmp_path_factory.mktemp("arena"), limits) as lab, arena_on(lab) as running:
        # Refusals of one kind are counted for a second and then written as one: here each is waited for.
        lab.broker.refusals._window = 0.02
        yield running
