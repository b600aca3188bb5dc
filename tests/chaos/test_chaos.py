"""The bounded form of `make chaos`: some seconds of trouble on each kind of bus, then every promise is checked."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.chaos.run import one_round

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]


@pytest.mark.parametrize("bus", ["one server", "three servers"])
async def test_no_promise_is_broken_whatever_dies(tmp_path: Path, bus: str):
    seed = os.environ.get("CHAOS_SEED", "ci")
    report = await one_round(
        tmp_path / "town", seed, clustered=bus == "three servers", seconds=12, brokers=2, pause=0.6
    )
    said = "\n".join(report.lines())
    print(f"{bus}, seed {seed}\n{said}")
    assert report.ok, f"CHAOS_SEED={seed} on {bus}; everything is kept in {tmp_path}\n{said}"
    shutil.rmtree(tmp_path / "town", ignore_errors=True)
