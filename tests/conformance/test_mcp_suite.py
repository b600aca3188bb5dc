"""The protocol's own conformance suite says the same of a server behind a pipe through Remit as it says of that server."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.mcp_suite import REVISIONS, compared, differences
from tests.support.npm import installed

TRIES = 3
"""The suite has a clock of its own (some checks wait for half a second): what differs by it does not differ each time."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("revision", list(REVISIONS))
def test_the_suite_says_the_same_directly_and_through_remit(tmp_path: Path, revision: str) -> None:
    suite = installed(Path(__file__).parent / "mcp_suite_npm", "the conformance suite of MCP is a package of npm")
    always: set[str] | None = None
    for count in range(TRIES):
        folder = tmp_path / str(count)
        found = compared(suite, folder, revision, ("directly", "pipe"))
        assert sum(found["directly"].values()) > 80
        lines = set(differences(found))
        always = lines if always is None else always & lines
        if not always:
            return
    assert not always, sorted(always or ())
