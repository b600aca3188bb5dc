"""A broker in a process of its own, as ``remit up`` starts it: for killing it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from remit_broker.credentials import credentials_file
from remit_broker.starter import write_starter
from remit_schemas.names import Kind

SECONDS = 40.0


class NotReady(Exception):  # noqa: N818 - an answer, as those of the product are
    """The broker did not start; its first line says why."""


class ProcessLab:
    """A folder with a configuration, and at most one broker process on it. ``seeds`` and ``url`` are what raw agents need."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = write_starter(folder, "local", 0)
        text = self.config.read_text(encoding="utf-8")
        self.config.write_text(text.replace("# orphan_grace = 30.0", "orphan_grace = 0.1"), encoding="utf-8")
        self.seeds: dict[str, str] = {}
        self.url = ""
        self.process: asyncio.subprocess.Process | None = None
        self.said = ""
        """The first line that the broker printed: why it does not run, where it does not."""
        self.http: httpx.AsyncClient | None = None

    @classmethod
    def on(cls, folder: Path, seeds: dict[str, str]) -> ProcessLab:
        """A folder on which a broker has run before, with the agents it knows."""
        lab = cls.__new__(cls)
        lab.folder, lab.config, lab.seeds = folder, folder / "remit.toml", dict(seeds)
        lab.url, lab.process, lab.said, lab.http = "", None, "", None
        return lab

    async def start(self, failpoint: str = "", *words: str) -> dict[str, Any]:
        """Start a broker that will die at ``failpoint``, where one is named; its first line when it is ready. Raises :class:`NotReady`.

        ``words`` are further words of ``remit up``.
        """
        self.process = await asyncio.create_subprocess_exec(
            *self.command(*words),
            stdout=asyncio.subprocess.PIPE, env={**os.environ, "REMIT_FAILPOINT": failpoint},
        )  # fmt: skip
        assert self.process.stdout is not None
        self.said = (await asyncio.wait_for(self.process.stdout.readline(), SECONDS)).decode()
        ready: dict[str, Any] = json.loads(self.said)
        if "nats" not in ready:
            raise NotReady(self.said)
        self.url = ready["nats"]
        token = (self.folder / "data" / "keys" / "local.token").read_text(encoding="utf-8").strip()
        self.http = httpx.AsyncClient(
            base_url=ready["http"], headers={"Authorization": f"Bearer {token}"}, timeout=SECONDS, trust_env=False
        )
        return ready

    def command(self, *words: str) -> list[str]:
        """The command line of a broker on this folder."""
        up = [sys.executable, "-m", "remit_broker.cli.main", "up", "--json", "--quiet"]
        return [*up, "-c", str(self.config), *words]

    async def died(self) -> int:
        """Wait for the process to end; its return code."""
        assert self.process is not None
        return await asyncio.wait_for(self.process.wait(), SECONDS)

    async def stop(self) -> None:
        """End the broker as an operator would."""
        if self.http is not None:
            await self.http.aclose()
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.send_signal(signal.SIGCONT)  # a frozen one hears it then
            await asyncio.wait_for(self.process.wait(), SECONDS)

    async def api(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """One call of the API; raises for an error."""
        assert self.http is not None
        return (await self.http.request(method, path, json=body)).raise_for_status().json()

    async def agent(self, name: str, tier: str = "standard", kind: Kind = "agent") -> None:
        """Register a principal."""
        known = {"bus": self.url, **(await self.api("GET", "/api/status"))["published"]}
        path, public = credentials_file(self.folder / "credentials", name, kind, known)
        self.seeds[name] = json.loads(path.read_text(encoding="utf-8"))["nkey_seed"]
        await self.api("POST", "/api/agents", {"name": name, "nkey": public, "kind": kind, "tier": tier})

    async def grant(self, to: str, *scopes: str, calls: int = 10) -> tuple[str, str]:
        """A new txn and its root grant."""
        wish = {
            "user": "ann",
            "agent": to,
            "scopes": [{"type": "remit", "resource": scope} for scope in scopes],
            "budget": {"usd_micros": 1_000_000, "tokens": 0, "calls": calls},
        }
        told = await self.api("POST", "/api/grants", wish)
        return told["txn"], told["grant"]

    async def records(self, txn: str) -> list[dict[str, Any]]:
        """The records of a txn in order."""
        found: list[dict[str, Any]] = (await self.api("GET", f"/api/chains/{txn}"))["records"]
        return found

    async def settled(self, txn: str) -> list[dict[str, Any]]:
        """The records once no hop is open any more."""
        async with asyncio.timeout(SECONDS):
            while True:
                records = await self.records(txn)
                kinds = [record["kind"] for record in records]
                if kinds.count("hop.opened") == kinds.count("hop.closed"):
                    return records
                await asyncio.sleep(0.1)


@asynccontextmanager
async def process_lab(folder: Path) -> AsyncIterator[ProcessLab]:
    """A lab whose broker, if any runs, is ended at the end."""
    lab = ProcessLab(folder)
    try:
        yield lab
    finally:
        await lab.stop()
