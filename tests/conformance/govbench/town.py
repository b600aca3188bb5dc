"""A real broker for one scenario, with the agents, users and MCP servers that it speaks of; its actions become hops."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import httpx

from remit import Agent, Hop, Refused, ToolFailed, open_task
from remit_broker.core.issuers import DEV_PATH
from remit_broker.edges.attach.credentials import read_credentials
from remit_broker.edges.attach.source import source
from remit_broker.edges.attach.worker import AttachWorker
from remit_broker.testing import Lab, running_broker
from remit_schemas.names import Resource
from tests.conformance.govbench import mapping
from tests.conformance.govbench.audit import entries
from tests.conformance.govbench.mapping import SERVER, client, plain

TOOL_SERVER: Final = Path(__file__).with_name("tool_server.py")
PATIENCE: Final = 15.0
"""Seconds for which a client tries to begin a task while nobody answers; then it gives up, and nothing was called."""
RETRIES: Final = 6
"""How often a client calls again what was refused without effect after an outage: for some six seconds in all."""
MINUTE: Final = 60

Said = tuple[bool, str]
"""Whether a call was answered by the tool, and what was said."""
Step = dict[str, Any]
"""One hand-over: the agent, and the scopes of its grant."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Town:
    """One scenario's world. ``begin`` it, let it ``act``, read its ``audit``."""

    def __init__(self, folder: Path, setup: Any, entry: Callable[[str], Any]) -> None:
        """``entry`` makes the benchmark's own entry of a policy from a permission."""
        self.folder, self.setup, self._entry = folder, setup, entry
        self.reachable = True
        self.lab: Lab
        self._broker = AsyncExitStack()
        self._rest = AsyncExitStack()
        self._agents: dict[tuple[str, str], Agent] = {}
        self._clients: dict[tuple[str, str], Path] = {}
        self._tokens: dict[str, str] = {}
        self._tasks: list[tuple[str, str]] = []
        self._handed: dict[tuple[str, str, str], tuple[str, list[str]]] = {}
        self._recovery: asyncio.Task[None] | None = None
        self._config = mapping.config(setup) | {
            "bus": {"port": free_port()},
            "http": {"port": free_port(), "auth": "issuer"},
        }

    async def __aenter__(self) -> Town:
        for tenant in self.setup.tenants:
            self._write(tenant)
        await self._up()
        for tenant in self.setup.tenants:
            await self._attach(tenant.id)
            for user in tenant.users:
                self._tokens[user.uid] = await self._token(user.uid)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._recovery:
            self._recovery.cancel()
        await self._rest.aclose()
        await self._broker.aclose()

    async def _up(self) -> None:
        broker = running_broker(self.folder, self._config, [("common.cedar", mapping.common(self.setup.tools))])
        self.lab = await self._broker.enter_async_context(broker)

    def _write(self, tenant: Any) -> None:
        file = self.folder / "policies" / "tenant" / tenant.id / "govbench.cedar"
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_suffix(".new")
        new.write_text(mapping.cedar(tenant, self.setup.tools), encoding="utf-8")
        new.replace(file)

    async def _attach(self, tenant: str) -> None:
        names = [tool.name for tool in self.setup.tools]
        credentials = read_credentials(await self.lab.agent(SERVER, kind="mcp", tenant=tenant))
        worker = AttachWorker(SERVER, source([sys.executable, str(TOOL_SERVER), *names]), credentials)
        running = asyncio.create_task(worker.run())

        async def stop() -> None:
            worker.stop()
            with contextlib.suppress(Exception):
                await running

        self._rest.push_async_callback(stop)
        async with asyncio.timeout(30):
            while any(self._registry(tenant).target(Resource("mcp", SERVER, name)) is None for name in names):
                if running.done():
                    running.result()
                await asyncio.sleep(0.05)

    def _registry(self, tenant: str) -> Any:
        return self.lab.broker.registries.of(tenant)

    async def _token(self, user: str) -> str:
        form = {"grant_type": "password", "username": user, "client_secret": self.lab.broker.keys.local_token}
        async with httpx.AsyncClient(base_url=self.lab.broker.http, trust_env=False) as http:
            answer = await http.post(f"{DEV_PATH}/token", data=form)
        return str(answer.raise_for_status().json()["access_token"])

    async def _agent(self, tenant: str, name: str, tier: str) -> str:
        """An agent that does what it is told: call a tool, or hand that on. Its name."""
        known = plain(name)
        if (tenant, known) not in self._agents:
            me = Agent(known, await self.lab.agent(known, tier=tier, tenant=tenant))

            @me.skill
            async def work(hop: Hop, path: list[Step], tool: str, given: dict[str, Any], times: int) -> list[list[Any]]:
                """Carry on."""
                return [list(said) for said in await self._carry(hop, path, tool, given, times)]

            await me.start()
            self._rest.push_async_callback(me.stop, 0)
            self._agents[tenant, known] = me
        return known

    async def _carry(self, caller: Any, path: list[Step], tool: str, given: dict[str, Any], times: int) -> list[Said]:
        if not path:
            return [await self._call(caller, tool, given) for _ in range(times)]
        to, *rest = path
        try:
            found = await caller.call(
                f"agent/{to['agent']}/work",
                args={"path": rest, "tool": tool, "given": given, "times": times},
                scopes=to["scopes"],
                budget=f"usd=0.01,calls={times + len(path)}",
            )
        except (Refused, ToolFailed) as no:
            return [(False, str(no))] * times
        return [(ok, why) for ok, why in found]

    async def _call(self, caller: Any, tool: str, given: dict[str, Any]) -> Said:
        try:
            # After an outage the tool's server comes back a moment after the broker: nothing has happened, so it is called again.
            again = RETRIES if self._recovery else 0
            await caller.call(f"mcp/{SERVER}/{tool}", args=given, budget="usd=0,calls=1", retry=again)
        except (Refused, ToolFailed) as no:
            return False, str(no)
        return True, "answered by the tool"

    async def act(self, action: Any) -> AsyncIterator[dict[str, Any]]:
        """Do it; the outcomes of its calls, with the fields of the benchmark's ``ToolOutcome``."""
        match action.kind:
            case "direct_tool_call":
                (outcome,) = await self._direct(action)
                yield outcome
            case "parallel_fan_out":
                for outcome in await self._fan_out(action):
                    yield outcome
            case "delegation":
                # Carried out when the agent that it names acts: then all of its hand-overs are hops of one task.
                key = (self._tenant(action), action.as_user, plain(action.to_agent))
                self._handed[key] = (
                    plain(action.from_agent),
                    mapping.delegated(action.delegated_scopes, self.setup.tools),
                )
                await self._agent(key[0], action.from_agent, "subagent")
                await self._agent(key[0], action.to_agent, "subagent")
            case "gateway_failure":
                await self._fail(action.duration_seconds)
            case "policy_change":
                await self._change(action)
            case other:
                raise NotImplementedError(other)

    def _tenant(self, action: Any) -> str:
        return str(action.as_tenant or self.setup.tenants[0].id)

    async def _direct(self, action: Any) -> list[dict[str, Any]]:
        tenant, name = self._tenant(action), plain(action.agent_name or "")
        path: list[Step] = []
        if name and self.reachable:
            await self._agent(tenant, name, action.agent_tier)
        while name:
            before, scopes = self._handed.get((tenant, action.as_user, name), ("", ["mcp/**", "agent/**"]))
            path.insert(0, {"agent": name, "scopes": scopes})
            name = before
        said = await self._as_user(action, client(action.agent_tier) if not path else client("interactive"), [path], 1)
        return [self._outcome(action, one, action.agent_tier, action.agent_name) for one in said]

    async def _fan_out(self, action: Any) -> list[dict[str, Any]]:
        if self._config["caps"]:
            # A window is a minute of the calendar: what is to happen within one begins well before its end.
            left = MINUTE - time.time() % MINUTE
            await asyncio.sleep(left if left < MINUTE / 2 else 0)
        tenant = self._tenant(action)
        paths: list[list[Step]] = []
        for number in range(action.worker_count):
            name = await self._agent(tenant, f"worker-{number}", "subagent")
            paths.append([{"agent": name, "scopes": ["mcp/**", "agent/**"]}])
        said = await self._as_user(action, client("interactive"), paths, action.calls_per_worker)
        return [self._outcome(action, one, "subagent", None) for one in said]

    def _outcome(self, action: Any, said: Said, tier: str, agent: str | None) -> dict[str, Any]:
        return {
            "tool": action.tool, "input": action.input, "as_user": action.as_user, "as_tenant": self._tenant(action),
            "allowed": said[0], "reason": said[1], "agent_tier": tier, "agent_name": agent,
        }  # fmt: skip

    async def _as_user(self, action: Any, name: str, paths: list[list[Step]], times: int) -> list[Said]:
        """In one task of the user, begun with the user's token by a client of the tenant that is named."""
        tenant, token = self._tenant(action), self._tokens.get(action.as_user, "no-token")
        if (tenant, name) not in self._clients and self.reachable:
            tier = name.removeprefix("client-")
            self._clients[tenant, name] = await self.lab.agent(name, tier=tier, tenant=tenant)
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return await self._in_task(tenant, name, token, paths, action, times)
            except (Refused, OSError, TimeoutError) as no:
                if self.reachable or time.monotonic() > until:
                    return [(False, str(no))] * (times * len(paths))
                await asyncio.sleep(0.5)

    async def _in_task(
        self, tenant: str, name: str, token: str, paths: list[list[Step]], action: Any, times: int
    ) -> list[Said]:
        credentials = self._clients.get((tenant, name)) or self._offline(tenant, name)
        async with open_task(
            token=token, scopes=["mcp/**", "agent/**"], budget="usd=1,calls=1000", as_=name, credentials=credentials
        ) as task:
            self._tasks.append((tenant, task.txn))
            done = await asyncio.gather(*(self._carry(task, path, action.tool, action.input, times) for path in paths))
        return [said for one in done for said in one]

    def _offline(self, tenant: str, name: str) -> Path:
        raise ConnectionError(f"{name} of {tenant} cannot be registered: nobody answers")

    async def _fail(self, seconds: float) -> None:
        """Stop the broker and its bus, for that long."""
        for tenant in self.setup.tenants:
            for tier in mapping.TIERS:
                name = client(tier)
                self._clients[tenant.id, name] = await self.lab.agent(name, tier=tier, tenant=tenant.id)
        await self._broker.aclose()
        self.reachable = False

        async def recover() -> None:
            await asyncio.sleep(seconds)
            await self._recover()

        self._recovery = asyncio.create_task(recover())

    async def _recover(self) -> None:
        self._broker = AsyncExitStack()
        await self._up()
        self.reachable = True

    async def _change(self, action: Any) -> None:
        if action.set_rate_limit is not None:
            raise NotImplementedError("a cap is changed by a restart")
        tenant = next(one for one in self.setup.tenants if one.id == (action.tenant or self.setup.tenants[0].id))
        mapping.change(tenant.policy, action, self._entry(action.set_permission))
        policy = self.lab.broker.policy
        before = policy.revision
        self._write(tenant)
        async with asyncio.timeout(20):
            while policy.revision == before:
                await asyncio.sleep(0.05)

    async def audit(self) -> list[dict[str, Any]]:
        """What the broker's records say; one that is down is started again for it."""
        was = self.reachable
        if self._recovery and not self._recovery.done():
            self._recovery.cancel()
            await self._recover()
        found: list[dict[str, Any]] = []
        for tenant, txn in self._tasks:
            found += entries(await self.lab.records(txn, tenant), await self.lab.refusals(txn, tenant))
        self.reachable = was
        return found
