"""The same tests against a NATS server in a container: said here once, whether they ran or not."""

from __future__ import annotations

import pytest

from remit_broker.testing import Lab
from tests.support.nats import DOCKER_MISSING


async def test_the_nats_server_may_be_a_container(lab: Lab):
    """Where a Docker daemon answers, every test with the fixtures ``lab`` and ``bus`` runs twice, this one too."""
    opened = await _opened(lab)
    assert [record["kind"] for record in await lab.records(opened)] == ["txn.opened"]
    if DOCKER_MISSING:
        pytest.skip(f"the container half of every test with a bus: {DOCKER_MISSING}")


async def _opened(lab: Lab) -> str:
    await lab.agent("desk")
    return (await lab.grant("desk", "agent/**")).txn
