"""The fixture ``bus``: import it into a test module (``from tests.support.bus_fixture import bus  # noqa: F401``)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.nats import VARIANTS, Bus, running_bus


@pytest.fixture(params=VARIANTS)
async def bus(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bus]:
    """A bus with two agents and a server of tools; the same tests run against a container where a Docker daemon answers."""
    async with running_bus(tmp_path, {"alice": "agent", "bob": "agent", "files": "mcp"}, request.param) as running:
        yield running
