"""The one fixture for a running broker. The NATS server is the embedded one, and a container too where a Docker daemon answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from remit_broker.testing import Lab, running_broker
from tests.support.nats import VARIANTS, container_url


@pytest.fixture(params=VARIANTS)
async def lab(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Lab]:
    """A running broker in a folder of its own."""
    async with AsyncExitStack() as stack:
        config = {}
        if request.param == "container":
            config = {"bus": {"url": await stack.enter_async_context(container_url(tmp_path))}}
        yield await stack.enter_async_context(running_broker(tmp_path, config))
