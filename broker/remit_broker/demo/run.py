"""The demonstration from start to end; everything it returns was read back from the records of this run."""

from __future__ import annotations

import asyncio
import getpass
import json
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import msgspec

from remit import Agent, Refused
from remit_broker.adapters.errors import ServiceError
from remit_broker.app import Broker
from remit_broker.config import load
from remit_broker.core.evidence import Verdict, verify_evidence
from remit_broker.core.registry import Principal
from remit_broker.credentials import credentials_file
from remit_broker.demo.intruder import Attempt, intrude
from remit_broker.demo.people import DESK, PLANNER, RESEARCHER, SERVER, planner, researcher
from remit_broker.demo.repository import SERVER_PACKAGE, find_repository, require_git, server_command
from remit_broker.edges.attach.servers_file import ServerEntry, write_servers
from remit_broker.edges.attach.source import source
from remit_broker.hop.txn import Delegation, Opened, close_txn, open_txn
from remit_broker.starter import write_starter
from remit_schemas.budget import parse_budget
from remit_schemas.keys import KeySet
from remit_schemas.names import Kind, Resource
from remit_schemas.scope import Scope, parse_scope

APPROVED = """\
@id("publishing-is-approved")
@reason("what is published cannot be taken back")
@approve("read what is published")
permit (principal, action == Action::"delegate", resource == Skill::"agent/planner/publish");

@id("no-mail-after-foreign-text")
@reason("text that anybody may have written has reached this chain, and such chains send no mail")
@ask("send it from a task that has not read it")
forbid (principal, action == Action::"delegate", resource == Skill::"agent/planner/mail")
when { context.labels.contains("untrusted") };

@id("personal-data-is-replaced")
@reason("personal data is replaced in what comes back")
@redact("pii")
permit (principal, action == Action::"release", resource);
"""

Say = Callable[[str], None]

ATTACH_SECONDS = 20
SCOPES = ("agent/planner/*", "agent/researcher/*", "mcp/git/git_log", "mcp/git/git_reset")
BUDGET = "usd=0.05,tokens=1000,calls=30"
PRICES = '\n[prices]\n"mcp/git/*" = "usd=0.001,calls=1"\n'
# Whoever may commit writes what a history says.
SOURCES = '\n[labels]\n"mcp/git/git_log" = ["untrusted"]\n'
# The shape of a credential that was never issued; put together here so that no scanner of sources stops at it.
LOOKS_SECRET = "deploy with " + "ghp_" + "A1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q7r8"


class Shown(msgspec.Struct, kw_only=True):
    """What the demonstration captured."""

    txn: str
    result: Any
    records: list[dict[str, Any]]
    refusals: list[dict[str, Any]]
    attempts: list[Attempt]
    verdict: Verdict
    evidence: dict[str, Any]


async def demo(folder: Path, say: Say) -> Shown:
    """Run it in ``folder``, which then holds a configuration, a ledger and keys that ``remit up`` can go on with."""
    require_git()
    server_command(folder)  # before anything is written: is it there?
    file = write_starter(folder, "local", 0)
    text = file.read_text(encoding="utf-8")
    for table in ("prices", "labels"):
        text = text.replace(f"\n[{table}]", f"\n# [{table}]")
    file.write_text(text + PRICES + SOURCES, encoding="utf-8")
    settings = load(str(file))
    (settings.policies / "demo.cedar").write_text(APPROVED, encoding="utf-8")
    repository, which = find_repository(folder)
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(Broker(settings))
        say(f"broker {broker.http}, NATS server {broker.bus}, everything in {folder}")
        paths = {name: await _enrol(broker, name, "agent") for name in (DESK, PLANNER, RESEARCHER)}
        await _enrol(broker, SERVER, "mcp")
        write_servers(settings.servers_file, {SERVER: ServerEntry(SERVER, source(server_command(repository)))})
        await broker.tenants["default"].reload_servers()
        for agent in (planner(paths[PLANNER]), researcher(paths[RESEARCHER])):
            await stack.enter_async_context(agent)
        await _attached(broker)
        say(f"{SERVER_PACKAGE} is attached as {SERVER} and reads {which}")
        opened = await _delegate(broker)
        say(f"{getpass.getuser()} hands a task to {DESK}: txn {opened.txn}")
        result = await _work(paths[DESK], opened, str(repository))
        await _publish(broker, paths[DESK], opened, say)
        attempts = await intrude(paths[RESEARCHER])
        await close_txn("default", opened.txn, getpass.getuser(), "closed", broker.ports)
        return await _captured(broker, opened.txn, result, attempts)


async def _enrol(broker: Broker, name: str, kind: Kind) -> str:
    path, public = credentials_file(broker.settings.credentials, name, kind, {"bus": broker.bus, **broker.published()})
    await broker.registry.add(Principal(name=name, kind=kind, nkey=public))
    return str(path)


async def _attached(broker: Broker) -> None:
    """Wait until the server's tools can be called."""
    try:
        async with asyncio.timeout(ATTACH_SECONDS):
            while broker.registry.target(Resource("mcp", SERVER, "git_log")) is None:
                await asyncio.sleep(0.05)
    except TimeoutError:
        states = ", ".join(
            f"{state['state']} {state['reason']}".strip() for state in broker.tenants["default"].servers()
        )
        raise ServiceError(
            f"{SERVER_PACKAGE} did not attach within {ATTACH_SECONDS} s: {states}",
            "try it by itself: mcp-server-git --help",
        ) from None


async def _delegate(broker: Broker) -> Opened:
    return await open_txn(
        Delegation(
            tenant="default",
            user=getpass.getuser(),
            agent=DESK,
            scope=Scope.of(parse_scope(text) for text in SCOPES),
            budget=parse_budget(BUDGET),
            ttl=600,
            auth=f"local:{getpass.getuser()}",
        ),
        broker.ports,
    )


async def _work(path: str, opened: Opened, repository: str) -> Any:
    """The user's own first agent: what works, one answer with a part replaced, and what is refused, here or further down."""
    async with Agent(DESK, credentials=path).task(opened.grant) as task:
        result = await task.call(
            f"agent/{PLANNER}/plan", question="What changed last?", repository=repository, budget="usd=0.03,calls=12"
        )
        tries: tuple[tuple[str, dict[str, str]], ...] = (
            ("ask_author", {}),
            ("mail", {"text": "what the history says"}),
            ("overspend", {"repository": repository}),
            ("leak", {"note": LOOKS_SECRET}),
        )
        for skill, args in tries:
            try:
                await task.call(f"agent/{PLANNER}/{skill}", args=args, budget="usd=0.004,calls=3")
            except Refused:
                continue  # it is in the records
        return result


async def _publish(broker: Broker, path: str, opened: Opened, say: Say) -> None:
    """A call that a person has to approve: refused, approved by the API as an operator would, and made again, the same."""
    async with Agent(DESK, credentials=path).task(opened.grant) as task:
        wishes: dict[str, Any] = {"args": {"what": "the last three commits"}, "budget": "usd=0.001,calls=2"}
        try:
            await task.call(f"agent/{PLANNER}/publish", **wishes)
        except Refused as no:
            if no.approval is None:
                raise
            await _approve(broker, no.approval)
            say(f"{getpass.getuser()} approves {no.approval}, and the identical call goes through")
            await task.call(f"agent/{PLANNER}/publish", approval=no.approval, **wishes)


async def _approve(broker: Broker, name: str) -> None:
    headers = {"Authorization": f"Bearer {broker.keys.local_token}"}
    async with httpx.AsyncClient(base_url=broker.http, headers=headers, trust_env=False) as api:
        shown = (await api.get(f"/api/approvals/{name}")).raise_for_status().json()
        said = {"verdict": "approve", "reason": "I have read it", "args_digest": shown["args_digest"]}
        (await api.post(f"/api/approvals/{name}", json=said)).raise_for_status()


async def _captured(broker: Broker, txn: str, result: Any, attempts: list[Attempt]) -> Shown:
    """What the ledger says happened, and whether it verifies with the keys as anybody can download them."""
    evidence = await broker.evidence("default", txn)
    async with httpx.AsyncClient(trust_env=False) as client:
        jwks = (await client.get(f"{broker.http}/.well-known/jwks.json")).raise_for_status().content
    verdict = verify_evidence(json.loads(json.dumps(evidence)), KeySet.from_jwks(jwks), frozenset())
    return Shown(
        txn=txn, result=result, records=evidence["records"], refusals=evidence["refusals"], attempts=attempts,
        verdict=verdict, evidence=evidence,
    )  # fmt: skip
