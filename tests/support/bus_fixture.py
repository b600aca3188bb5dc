"""The fixture ``bus``: import it into a test module (``from tests.support.bus_fixture import bus  # noqa: F401``)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.nats import Bus, docker_missing, running_bus


@pytest.fixture(params=["embedded", "container"])
async def bus(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bus]:
    """A bus with two agents and a server of tools; the same tests run against a container where a Docker daemon answers."""
    if request.param == "container" and (reason := docker_missing()):
        pytest.skip(reason)
    async with running_bus(tmp_path, {"alice": "agent", "bob": "agent", "files": "mcp"}, request.param) as running:
        yield running
