"""The processes around the brokers: callees that write down what they are asked, callers that write down what they are told.

``python -m tests.chaos.people ROLE FOLDER NAME SEED``. All but the planner are raw NATS clients with nothing of the SDK and nothing
of the broker in them. Each may be killed or frozen at any time; whoever watches starts it again under the same name.

- ``clerk``: an agent or, as ``files``, a server of tools. Works for some milliseconds, reports a cost, fails now and then, and
  now and then never answers at all.
- ``approver``: a person who decides over ``/api/approvals``, for both tenants, and now and then for the wrong one.
- ``planner``: an agent on the SDK that hands parts of its work to the other two.
- ``desk``: opens tasks over HTTP at whichever broker answers, calls side by side with a key each, repeats what had no effect,
  cancels, revokes, and closes its tasks.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import secrets
import signal
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from tests.chaos.brokers import OTHER
from tests.chaos.journal import Journal

Json = dict[str, Any]
OBJECT = {"type": "object"}
CAREFUL = "mcp/files/write"
"""A tool that destroys, so that by the starter policies each of its calls needs an approval."""
USERS = ("ann", "ann", "bob", "carl", "dora", "eve")
FINAL = ("result", "error", "input_required")
PATIENCE = 4.0
"""Seconds that a caller waits for an end beyond its deadline."""


class Raw:
    """One principal on the bus."""

    def __init__(self, folder: Path, name: str, seed: str) -> None:
        self.folder = folder
        self.rng = random.Random(f"{seed}/{name}")
        self.journal = Journal(folder / "journals", name)
        told = json.loads((folder / "credentials" / f"{name}.json").read_text(encoding="utf-8"))
        self.name, self.kind, self._key, self._bus = told["agent"], told["kind"], told["nkey_seed"], told["bus"]
        self.tenant = OTHER if name.startswith(f"{OTHER}-") else "default"
        self.connection = secrets.token_hex(12)
        self.nc = Client()

    async def run(self) -> None:
        """Play the role until somebody ends this process."""
        raise NotImplementedError

    async def connect(self) -> None:
        """Connect, and stay connected for as long as the process lives."""

        async def quiet(_: Exception) -> None:
            return None

        while not self.nc.is_connected:
            with contextlib.suppress(Exception):
                self.nc = await nats.connect(
                    self._bus.split(","), name=self.connection, nkeys_seed_str=self._key, error_cb=quiet,
                    inbox_prefix=f"_INBOX_{self.name}.{self.connection}", max_reconnect_attempts=-1,
                    reconnect_time_wait=0.2, connect_timeout=3, ping_interval=2, max_outstanding_pings=2,
                )  # fmt: skip
                return
            await asyncio.sleep(0.2)

    def inbox(self) -> str:
        return f"_INBOX_{self.name}.{self.connection}.{secrets.token_hex(12)}"

    async def attach(self, *names: str) -> None:
        """Serve ``names``: ask again until some broker has taken it down."""
        what = "tools" if self.kind == "mcp" else "skills"
        definitions = [
            {
                "name": name,
                "inputSchema": OBJECT,
                "annotations": {"readOnlyHint": name == "read", "destructiveHint": name != "read"},
            }
            for name in names
        ]
        if self.kind != "mcp":
            definitions = [{"name": name, "inputSchema": OBJECT} for name in names]
        request = json.dumps({"v": 1, "args": {what: definitions}}).encode()
        while True:
            with contextlib.suppress(Exception):
                inbox = self.inbox()
                ear = await self.nc.subscribe(inbox)
                await self.nc.publish(f"req.{self.name}.new.remit.attach.put", request, reply=inbox)
                frame = json.loads((await ear.next_msg(3)).data)
                await ear.unsubscribe()
                if frame["frame"] == "result":
                    return
            await asyncio.sleep(0.3)


class Clerk(Raw):
    """A callee."""

    def __init__(self, folder: Path, name: str, seed: str) -> None:
        super().__init__(folder, name, seed)
        self._taken: set[tuple[str, str, str]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        await self.connect()
        await self.nc.subscribe(f"svc.{self.kind}.{self.name}.>", self.name, cb=self._on_work)
        await self.attach(*(("read", "write") if self.kind == "mcp" else ("work",)))
        await asyncio.Event().wait()

    async def _on_work(self, message: Msg) -> None:
        call = json.loads(message.data)
        fields = {name: call[name] for name in ("txn", "hop", "grant", "deadline", "replica")}
        # INVARIANT of this test: written down before anything is done about it.
        self.journal.write("dispatched", tenant=self.tenant, resource=call["resource"], **fields)
        key = (call["txn"], call["hop"], call["grant"])
        if time.time() * 1000 >= call["deadline"] or key in self._taken:
            return
        self._taken.add(key)
        task = asyncio.ensure_future(self._work(call, message.reply))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self, call: Json, where: str) -> None:
        rng = self.rng
        await self._say(where, {"frame": "started", "connection": self.connection})
        lot = rng.random()
        if rng.random() < 0.2:
            await self._say(where, {"frame": "progress", "message": "at it"})
        await asyncio.sleep(rng.expovariate(1 / 0.03) if lot < 0.9 else rng.uniform(0.3, 1.5))
        cost = {"usd_micros": rng.choice((0, 100, 700)), "tokens": rng.choice((0, 10)), "calls": 0}
        if lot > 0.98:
            return  # it never answers
        if rng.random() < 0.05:
            await self._say(where, {"frame": "input_required", "request": {"what": "a word"}, "cost": cost})
            return
        if lot > 0.96:
            body = {
                "code": "TARGET_UNAVAILABLE",
                "message": "not today",
                "rule": "clerk",
                "ask": "later",
                "effect": "none",
            }
            await self._say(where, {"frame": "error", "error": {"retryable": True, "retry_after": 0.1, **body}})
        elif lot > 0.94:
            await self._say(where, {"frame": "result", "value": "no", "cost": cost, "failed": True})
        else:
            await self._say(where, {"frame": "result", "value": "x" * rng.randrange(400), "cost": cost})

    async def _say(self, where: str, frame: Json) -> None:
        with contextlib.suppress(Exception):
            await self.nc.publish(where, json.dumps(frame).encode())


async def planner(folder: Path, name: str, seed: str) -> None:
    """An agent on the SDK. What reaches it is written down as it comes, before the SDK looks at it."""
    from remit import Agent, Hop, Refused
    from remit.serve import Worker

    journal, rng = Journal(folder / "journals", name), random.Random(f"{seed}/{name}")
    taking = Worker.take

    def take(self: Worker, subject: str, data: bytes) -> None:
        call = json.loads(data)
        journal.write("dispatched", **{key: call[key] for key in ("txn", "hop", "grant", "deadline", "replica")})
        taking(self, subject, data)

    Worker.take = take  # type: ignore[method-assign]
    agent = Agent(name, credentials=folder / "credentials" / f"{name}.json")

    @agent.skill
    async def plan(hop: Hop, parts: int) -> list[str]:
        async def part(number: int) -> str:
            resource = "mcp/files/read" if rng.random() < 0.5 else "agent/clerk/work"
            try:
                return str(len(await hop.call(resource, number=number, budget="0.001usd 1000tokens 2calls")))
            except Refused as no:
                return no.code
            except Exception as failed:  # the callee worked, and says that it came to nothing
                return type(failed).__name__

        return list(await asyncio.gather(*(part(number) for number in range(parts))))

    while True:
        try:
            await agent.start(patience=5)
            break
        except Refused:
            await agent.stop(0)
            await asyncio.sleep(0.3)
    await asyncio.Event().wait()


class Desk(Raw):
    """A caller, with several tasks at a time."""

    def __init__(self, folder: Path, name: str, seed: str) -> None:
        super().__init__(folder, name, seed)
        self.stopping = asyncio.Event()
        self._http = httpx.AsyncClient(timeout=4, trust_env=False)

    async def run(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.stopping.set)
        await self.connect()
        await asyncio.gather(*(self._tasks() for _ in range(3)))

    async def _tasks(self) -> None:
        while not self.stopping.is_set():
            try:
                await self._task()
            except (httpx.HTTPError, OSError, ValueError, KeyError):
                await asyncio.sleep(0.2)

    async def _api(self, path: str, body: Json) -> Json:
        path = f"{path}?tenant={self.tenant}"
        brokers = json.loads((self.folder / "brokers.json").read_text(encoding="utf-8"))
        at = self.rng.choice(brokers)
        headers = {"Authorization": f"Bearer {at['token']}"}
        answer = await self._http.post(at["http"] + path, json=body, headers=headers)
        if answer.status_code >= 400:
            self.journal.write("refused", path=path, status=answer.status_code, body=answer.text[:300])
        told: Json = answer.raise_for_status().json()
        return told

    async def _task(self) -> None:
        budget = {"usd_micros": 40_000, "tokens": 40_000, "calls": self.rng.choice((25, 60))}
        scopes = [{"type": "remit", "resource": resource} for resource in ("agent/*/*", "mcp/files/*")]
        wish = {"user": self.rng.choice(USERS), "agent": self.name, "scopes": scopes, "budget": budget, "ttl": 120}
        told = await self._api("/api/grants", wish)
        txn, grant = told["txn"], told["grant"]
        self.journal.write("acked", txn=txn, kind="txn.opened", tenant=self.tenant)
        self._lose(txn, grant)
        calls = asyncio.Semaphore(4)

        async def one() -> None:
            async with calls:
                if not self.stopping.is_set():
                    await self._call(txn, grant)

        work = [asyncio.ensure_future(one()) for _ in range(self.rng.randrange(6, 20))]
        if self.rng.random() < 0.06:
            await asyncio.sleep(self.rng.random())
            await self._revoke({"txn": txn}, txn)
        await asyncio.gather(*work)
        if self.rng.random() < 0.85:
            frames = await self._ask(f"req.{self.name}.{txn}.remit.txn.close", {"v": 1, "grant": grant}, 5)
            if frames and frames[-1]["frame"] == "result":
                self.journal.write("acked", txn=txn, kind="txn.closed")

    async def _revoke(self, what: Json, txn: str) -> None:
        with contextlib.suppress(httpx.HTTPError, OSError):
            await self._api("/api/revocations", {**what, "why": "chaos"})
            # Of this grant or of one above it: what is revoked already is not revoked again.
            self.journal.write("acked", txn=txn, kind="grant.revoked")

    async def _call(self, txn: str, grant: str) -> None:
        if self.rng.random() < 0.05:
            await self._cross(txn)
        choices: list[tuple[str, Json]] = [("agent/clerk/work", {}), ("mcp/files/read", {})] * 2
        choices.append((CAREFUL, {"what": self.rng.randrange(1000)}))
        if self.tenant == "default":
            choices += [("agent/planner/plan", {"parts": self.rng.randrange(1, 5)})] * 2
        resource, args = self.rng.choice(choices)
        calls = 12 if resource == "agent/planner/plan" else 2
        request = {
            "v": 1, "grant": grant, "args": args, "key": secrets.token_hex(8),
            "want": {"ttl_ms": self.rng.randrange(1200, 4000), "budget": {"usd_micros": 3000, "tokens": 3000, "calls": calls}},
        }  # fmt: skip
        if resource == CAREFUL:
            await self._insist(txn, resource, request)
            return
        for _ in range(3):
            frames = await self._attempt(txn, resource, request)
            final = frames[-1] if frames and frames[-1]["frame"] in FINAL else None
            if final is not None and final["frame"] == "input_required":
                await self._answer(txn, resource, request, frames)
                return
            if final is not None and final["frame"] != "error":
                return
            if final is not None and (final["error"]["effect"] != "none" or not final["error"]["retryable"]):
                return
            if self.stopping.is_set():
                return
            # Nothing happened, or nobody knows: the same call under the same key, which happens at most once.
            await asyncio.sleep(self.rng.uniform(0.05, 0.5))

    async def _insist(self, txn: str, resource: str, request: Json) -> None:
        """Repeat the identical call until a person has decided, or several of it at once; now and then another one in its name."""
        named: Json = {}
        for _ in range(8):
            calls = [
                self._attempt(txn, resource, {**request, **named}) for _ in range(2 if self.rng.random() < 0.2 else 1)
            ]
            errors = [frames[-1].get("error", {}) if frames else {} for frames in await asyncio.gather(*calls)]
            asked = [error["approval"] for error in errors if error.get("code") == "APPROVAL_REQUIRED"]
            if len(asked) < len(calls) or self.stopping.is_set():
                return
            await asyncio.sleep(self.rng.uniform(0.1, 0.8))
            if self.rng.random() < 0.5:
                named = {"approval": asked[0]}
            if self.rng.random() < 0.15:
                other = {"approval": asked[0], "args": {"what": "else"}, "key": secrets.token_hex(8)}
                await self._attempt(txn, resource, {**request, **other})

    def _lose(self, txn: str, grant: str) -> None:
        """Leave a grant lying where somebody of another tenant finds it."""
        (self.folder / f"{self.tenant}.lost").write_text(f"{txn} {grant}", encoding="utf-8")

    async def _cross(self, mine: str) -> None:
        """Try what was found of another tenant's: under its task, and under one's own."""
        found = [path for path in self.folder.glob("*.lost") if path.stem != self.tenant]
        if not found:
            return
        words = found[0].read_text(encoding="utf-8").split()
        if len(words) != 2:
            return  # it was just being written
        txn, grant = words
        where = f"{self.rng.choice((txn, mine))}.{self.rng.choice(('agent.clerk.work', 'remit.txn.close', 'mcp.files.read'))}"
        request = {"v": 1, "grant": grant, "args": {}, "deadline": int(time.time() * 1000) + 2000}
        frames = await self._ask(f"req.{self.name}.{where}", request, 3)
        self.journal.write("crossed", txn=txn, tenant=self.tenant, frames=[frame["frame"] for frame in frames])

    async def _answer(self, txn: str, resource: str, request: Json, frames: list[Json]) -> None:
        """Give what was asked for, or leave it parked."""
        hop = next((frame["hop"] for frame in frames if frame["frame"] == "accepted"), None)
        if hop is None or self.rng.random() < 0.2:
            return
        await asyncio.sleep(self.rng.expovariate(1 / 0.2))
        resumed = {key: value for key, value in request.items() if key != "key"}
        frames = await self._attempt(txn, resource, {**resumed, "resume": hop, "input": {"word": "yes"}})
        if frames and frames[-1]["frame"] == "input_required" and not self.stopping.is_set():
            await self._answer(txn, resource, request, [{"frame": "accepted", "hop": hop}])

    async def _attempt(self, txn: str, resource: str, request: Json) -> list[Json]:
        call = secrets.token_hex(16)
        link = f"00-{call}-{secrets.token_hex(8)}-01"
        kind, name, op = resource.split("/")
        self.journal.write("began", call=call, txn=txn, resource=resource, link=link)
        subject = f"req.{self.name}.{txn}.{kind}.{name}.{op}"
        sent = {
            **request,
            "trace": {"traceparent": link},
            "deadline": int(time.time() * 1000) + request["want"]["ttl_ms"],
        }
        frames = await self._ask(subject, sent, request["want"]["ttl_ms"] / 1000 + PATIENCE, (txn, call, link))
        self.journal.write("ended", call=call, txn=txn, how=frames[-1]["frame"] if frames else "silence")
        return frames

    async def _ask(
        self, subject: str, request: Json, seconds: float, seen: tuple[str, str, str] | None = None
    ) -> list[Json]:
        """The frames of one request, as far as they came."""
        frames: list[Json] = []
        inbox, until = self.inbox(), time.monotonic() + seconds
        with contextlib.suppress(Exception):
            ear = await self.nc.subscribe(inbox)
            try:
                await self.nc.publish(subject, json.dumps(request).encode(), reply=inbox)
                while (left := until - time.monotonic()) > 0:
                    frame = json.loads((await ear.next_msg(left)).data)
                    frames.append(frame)
                    if seen is not None:
                        await self._hear(frame, *seen)
                    if frame["frame"] in FINAL:
                        break
            finally:
                await ear.unsubscribe()
        return frames

    async def _hear(self, frame: Json, txn: str, call: str, link: str) -> None:
        self.journal.write(
            "heard", txn=txn, call=call, link=link, frame={**frame, "value": None} if "value" in frame else frame
        )
        if frame["frame"] != "accepted":
            return
        lot = self.rng.random()
        if lot < 0.03:
            where = f"ctl.{self.name}.{frame['replica']}.{txn}.{frame['hop']}"
            await self.nc.publish(where, b'{"cancel":true}')
        elif lot < 0.05:
            await self._revoke({"grant": f"{txn}.{frame['hop']}.1"}, txn)


class Approver(Raw):
    """A person, at whichever broker answers: looks at what waits in each tenant, and decides on most of it."""

    def __init__(self, folder: Path, name: str, seed: str) -> None:
        self.folder, self.rng = folder, random.Random(f"{seed}/{name}")
        self.journal = Journal(folder / "journals", name)
        self._http = httpx.AsyncClient(timeout=4, trust_env=False)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self.rng.uniform(0.05, 0.2))
            with contextlib.suppress(httpx.HTTPError, OSError, ValueError, KeyError):
                await self._look(self.rng.choice(("default", OTHER)))

    async def _look(self, tenant: str) -> None:
        waiting = (await self._api("GET", "/api/approvals", tenant, state="waiting"))["approvals"]
        for row in self.rng.sample(waiting, min(len(waiting), 6)):
            lot, mine = self.rng.random(), tenant
            if lot < 0.08:
                mine = OTHER if tenant == "default" else "default"
            shown = await self._api("GET", f"/api/approvals/{row['id']}", tenant)
            said = {
                "verdict": "deny" if lot > 0.88 else "approve",
                "args_digest": shown["args_digest"],
                "reason": "chaos",
            }
            try:
                await self._api("POST", f"/api/approvals/{row['id']}", mine, said)
            except httpx.HTTPStatusError as no:
                self.journal.write("undecided", id=row["id"], status=no.response.status_code)
                continue
            self.journal.write("decided", id=row["id"], txn=row["txn"], tenant=tenant, by=mine, verdict=said["verdict"])
            if mine == tenant:
                self.journal.write("acked", txn=row["txn"], kind="approval.decided")

    async def _api(self, method: str, path: str, tenant: str, body: Json | None = None, **query: str) -> Json:
        at = self.rng.choice(json.loads((self.folder / "brokers.json").read_text(encoding="utf-8")))
        answer = await self._http.request(
            method, at["http"] + path, json=body, params={"tenant": tenant, **query},
            headers={"Authorization": f"Bearer {at['token']}"},
        )  # fmt: skip
        told: Json = answer.raise_for_status().json()
        return told


async def main(role: str, folder: str, name: str, seed: str) -> None:
    """Play a role until somebody ends this process."""
    logging.disable(logging.CRITICAL)
    if role == "planner":
        await planner(Path(folder), name, seed)
    else:
        await {"clerk": Clerk, "desk": Desk, "approver": Approver}[role](Path(folder), name, seed).run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:5]))
