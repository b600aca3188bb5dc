"""One running broker per module, started and used as people do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.cli import Running, new_folder, running


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A broker on a folder as ``remit init`` makes it."""
    with running(new_folder(tmp_path_factory.mktemp("broker"))) as found:
        yield found
