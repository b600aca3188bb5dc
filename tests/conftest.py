"""The one fixture for a running broker. The NATS server is the embedded one, and a container too where a Docker daemon answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that ran out of time says what its tasks were waiting for: the stack of the loop alone says nothing."""
    report = yield
    if call.excinfo is not None and "Timeout (>" in str(call.excinfo.value):
        # all_tasks() needs a loop that runs.
        waiting = [task for task in list(asyncio.tasks._all_tasks) if not task.done()]  # type: ignore[attr-defined]
        report.sections.append(("Tasks that were waiting", "\n".join(_where(task) for task in waiting)))
    return report


def _where(task: asyncio.Task[Any]) -> str:
    """What a task awaits, from its coroutine down to the innermost one."""
    lines, one = [task.get_name()], cast("Any", task.get_coro())
    while (frame := getattr(one, "cr_frame", None)) is not None:
        lines.append(f"  {frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}")
        one = getattr(one, "cr_await", None)
    return "\n".join(lines)
