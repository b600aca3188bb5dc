"""Policies that change while the broker runs: the folder is looked at, and what is valid as a whole is taken as a whole."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from remit_broker.adapters.cedar import CedarEngine, Policies
from remit_broker.adapters.cedar_source import policy_files
from remit_broker.adapters.errors import ConfigError

SECONDS: Final = 0.5
"""Between two looks. What changed is taken once it has stayed the same for one: whoever writes several files is let finish."""

log = logging.getLogger("remit")

State = tuple[tuple[str, int, int, int], ...]


class PolicyWatch:
    """Keeps an engine at what its folder says."""

    def __init__(self, engine: CedarEngine, fault: Callable[[str, BaseException], None]) -> None:
        self._engine, self._fault = engine, fault
        self._taken = self._seen = state_of(engine.folder)
        self.reloads = 0
        """How often another set was taken."""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(SECONDS)
            try:
                await self.look()
            except Exception as error:
                self._fault("policy.watch", error)

    async def look(self) -> None:
        """Take what has changed and is complete. What is not valid stays out, and the log says so."""
        state = await asyncio.to_thread(state_of, self._engine.folder)
        steady, self._seen = state == self._seen, state
        if state == self._taken or not steady:
            return
        self._taken = state
        before = self._engine.revision
        try:
            policies = await asyncio.to_thread(Policies.read, self._engine.folder)
        except ConfigError as bad:
            # INVARIANT: a bad edit changes nothing that is in force, and is not silent
            # (test_a_bad_edit_keeps_the_last_good_and_says_so).
            self._engine.trouble = str(bad)
            log.error("the policies were changed and are not valid, those before stay in force: %s", bad)
            return
        self._engine.put(policies)
        if policies.revision != before:
            self.reloads += 1
            log.warning("policies: revision %s is in force, it was %s", policies.revision[:12], before[:12])


def state_of(folder: Path) -> State:
    """What tells that something changed: paths, sizes, times and inodes."""
    found = []
    for file in policy_files(folder) if folder.is_dir() else ():
        try:
            told = file.stat()
        except OSError:
            continue
        found.append((str(file), told.st_size, told.st_mtime_ns, told.st_ino))
    return tuple(found)
