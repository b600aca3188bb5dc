"""A server that attaches with ever new tools fills nothing for ever."""

from __future__ import annotations

import pytest

from remit_broker.adapters import registry
from remit_broker.testing import Lab
from remit_schemas.envelope import Result
from tests.support.raw import arena_on, error_of, tool


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "MAX_PINS", 4)


async def test_a_server_with_ever_new_tools_is_refused_until_an_operator_forgets_the_old_ones(lab: Lab):
    async with arena_on(lab) as arena:
        server = await arena.agent("files", "mcp")
        await server.serve(tool("a"), tool("b"))
        await server.attach(tool("c"), tool("d"))
        no = error_of(await server.attach(tool("e")))
        assert (no.code, no.rule) == ("TOO_LARGE", "attach.pins")
        await lab.broker.registry.accept("files")
        assert isinstance((await server.attach(tool("e")))[-1], Result)
