"""The one fixture for a running broker. The NATS server is the embedded one, or a container where a Docker daemon answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from remit_broker.testing import Lab


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    """A running broker in a folder of its own."""
    from remit_broker.testing import running_broker

    async with running_broker(tmp_path) as running:
        yield running
