"""Older releases of the protocol's own clients, as they are published, work through Remit: one of each of two languages."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.support.mcp_client import Front, front_of
from tests.support.npm import installed
from tests.support.pypi import installed as installed_from_pypi

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]
OLDER = Path(__file__).parents[1] / "support" / "older"
PYPI = ("mcp==1.9.4", "pydantic==2.11.5")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def front(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Front]:
    async with front_of(tmp_path_factory.mktemp("front")) as running:
        yield running


async def driven(front: Front, *command: str, **env: str) -> dict[str, Any]:
    """What a client of its own process saw."""
    process = await asyncio.create_subprocess_exec(
        *command, f"{front.url}/mcp/files", front.token, env={**os.environ, **env},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    found: dict[str, Any] = json.loads(out)
    return found


async def test_an_older_client_in_python_works_through_remit(front: Front) -> None:
    modules = await asyncio.to_thread(installed_from_pypi, PYPI, "the older client is a package of PyPI")
    seen = await driven(front, sys.executable, str(OLDER / "drive.py"), PYTHONPATH=str(modules))
    assert (seen["release"], seen["protocol"]) == ("1.9.4", "2025-03-26")
    assert "echo" in seen["tools"] and "from python" in str(seen["answer"])


async def test_an_older_client_in_typescript_works_through_remit(front: Front) -> None:
    modules = await asyncio.to_thread(installed, OLDER, "the older client is a package of npm")
    # Beside its modules, since Node looks for those from where a script is.
    script = modules / f"drive-{os.getpid()}.mjs"
    shutil.copy(OLDER / "drive.mjs", script)
    try:
        seen = await driven(front, str(shutil.which("node")), str(script))
    finally:
        script.unlink()
    assert seen["protocol"] == "2024-11-05"
    assert "echo" in seen["tools"] and "from typescript" in str(seen["answer"])
