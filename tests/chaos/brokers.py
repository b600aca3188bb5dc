"""Broker processes: ``remit up`` on a folder of its own with the keys of all, and the bus that they meet on."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import httpx

from remit_broker.starter import write_starter
from tests.chaos import broker as shifted
from tests.chaos.processes import Process

OTHER = "acme"
"""The tenant beside the default one: agents of the same names, in an account of their own."""
APPROVAL_TTL, APPROVAL_USE = 8.0, 4.0
"""Seconds that a request waits, and that an approval can be used: short, so that both end while things die."""
CAPS = {("user", "ann", "month"): {"calls": 1500}, ("tool", "default", "month"): {"calls": 20_000}}
GRACE = 1.0
SECONDS = 40.0


class Broker(Process):
    """One replica. ``replica`` is its name in records, new at each start."""

    def __init__(self, folder: Path, name: str, keys: Path, bus: dict[str, Any]) -> None:
        super().__init__(folder, name)
        self.home = folder / name
        self.home.mkdir()
        self.config = write_starter(self.home, "local", 0)
        shutil.copytree(keys, self.home / "data" / "keys")
        (self.home / "data").chmod(0o700)
        self._configure(bus)
        self.clock = self.home / "clock"
        shifted.move(self.clock, 0.0)
        self.failpoint = ""
        self.replica = self.http = self.nats = ""
        self.replicas: list[str] = []
        self.token = (self.home / "data" / "keys" / "local.token").read_text(encoding="utf-8").strip()
        self.counts: dict[str, float] = {}
        self.past: dict[str, float] = {}

    def _configure(self, bus: dict[str, Any]) -> None:
        text = self.config.read_text(encoding="utf-8")
        text = text.replace("# orphan_grace = 30.0", f"orphan_grace = {GRACE}")
        text = text.replace(
            "[bus]\n", "[bus]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in bus.items())
        )
        text = text.replace("[prices]", '[prices]\n"mcp/files/*" = "usd=0.0005,calls=1"\n#', 1)
        caps = "".join(
            f'"{kind}".{name if name == "default" else json.dumps(name)}.{window} = "calls={cap["calls"]}"\n'
            for (kind, name, window), cap in CAPS.items()
        )
        text = text.replace("[caps]", f"[caps]\n{caps}#", 1)
        text = text.replace("[approvals]", f"[approvals]\nttl = {APPROVAL_TTL}\nuse = {APPROVAL_USE}", 1)
        self.config.write_text(f"{text}\n[tenants.{OTHER}]\n", encoding="utf-8")

    def edit(self, text: str) -> None:
        """Put ``text`` into its policies, as an operator's editor does; what they say stays the same."""
        file = self.home / "policies" / "default.cedar"
        fresh = file.with_suffix(".new")
        fresh.write_text(f"{file.read_text(encoding='utf-8')}\n// {text}\n", encoding="utf-8")
        fresh.rename(file)

    def command(self) -> list[str]:
        return ["-m", "tests.chaos.broker", str(self.clock), "up", "--json", "--quiet", "-c", str(self.config)]

    def environment(self) -> dict[str, str]:
        return {"REMIT_FAILPOINT": self.failpoint}

    def launch(self) -> None:
        """Start it: it is ready once :meth:`ready` says so."""
        for name, value in self.counts.items():
            self.past[name] = self.past.get(name, 0) + value
        self.counts, self.replica, self.http = {}, "", ""
        super().launch()

    def announced(self) -> bool:
        """Whether it has printed its first line, which is then known."""
        if not self.http and self.alive:
            line = (self.folder / f"{self.name}.stdout").read_bytes().partition(b"\n")
            if line[1] and "http" in (told := json.loads(line[0])):
                self.http, self.nats = told["http"], told["nats"]
        return bool(self.http) and self.alive

    async def ready(self, seconds: float = SECONDS) -> None:
        """Wait until it would take a hop. Raises AssertionError with what it says where it does not come to that."""
        until = asyncio.get_running_loop().time() + seconds
        said = "nothing"
        while asyncio.get_running_loop().time() < until:
            if self.announced():
                try:
                    async with self._client(1.0) as client:
                        answer = await client.get("/readyz")
                    if answer.status_code == 200:
                        return
                    said = answer.text
                except (httpx.HTTPError, OSError) as error:
                    said = repr(error)
            await asyncio.sleep(0.1)
        state = "frozen" if self.frozen else "running" if self.alive else "dead"
        raise AssertionError(f"{self.name} ({state}) is not ready after {seconds:.0f} s: {said}")

    async def look(self) -> None:
        """Ask it for its name and its counters, if it answers."""
        if not self.announced():
            return
        if not self.replica and (told := await self._asked("/api/status")):
            self.replica = json.loads(told)["replica"]
            self.replicas.append(self.replica)
        if text := await self._asked("/metrics"):
            for line in text.splitlines():
                if line.startswith("remit_") and "_bucket" not in line and "_created" not in line:
                    name, _, value = line.rpartition(" ")
                    self.counts[name] = float(value)

    def total(self, name: str) -> int:
        """A counter, over every process that ran under this name, as far as it could be asked before it died."""
        return round(sum(v for counts in (self.past, self.counts) for k, v in counts.items() if k.startswith(name)))

    async def api(self, method: str, path: str, body: Any = None) -> Any:
        """One call of its API; raises for an error."""
        async with self._client() as client:
            return (await client.request(method, path, json=body)).raise_for_status().json()

    async def _asked(self, path: str) -> str:
        try:
            async with self._client(1.0) as client:
                return (await client.get(path)).raise_for_status().text
        except (httpx.HTTPError, OSError):
            return ""

    def _client(self, seconds: float = SECONDS) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {self.token}"}
        return httpx.AsyncClient(base_url=self.http, headers=headers, timeout=seconds, trust_env=False)
