"""The vault: what was sent is shown to whoever may see it, as the records commit to it, and goes for good when a person is erased."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import pytest_asyncio

from remit_broker.adapters.admin_stream import AdminStream
from remit_broker.adapters.vault import BUCKET, STREAM, KvVault
from remit_broker.core.evidence import verify_evidence
from remit_broker.core.issuers import ABILITIES, OperatorRole
from remit_broker.core.report import page
from remit_broker.core.revocations import Entry
from remit_broker.core.user_tokens import Identity
from remit_broker.core.vault import Slot
from remit_broker.edges.http.operators import Caller, LocalToken
from remit_broker.edges.http.vault import Person
from remit_broker.testing import running_broker
from remit_broker.verifier import verify as offline
from remit_schemas.errors import Refusal
from remit_schemas.keys import KeySet
from tests.support.buckets import contents
from tests.support.raw import Arena, RawAgent, arena_on, skill, tool

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASKED, SAID = {"path": "what was asked"}, {"answer": "what was said"}
OTHER = "acme"
CONFIG = {
    "tenants": {OTHER: {}},
    "vault": {"on": True, "tenants": {OTHER: {"arguments": 3600.0, "results": 0.0}}},
}
SLOT = Slot("default", "ann", "results", "a" * 32, "b" * 16, "c" * 64)
LARGE = {"path": "a large file"}
LEAK = {"path": "a file with a key in it"}
SECRET = "AKIA" + "IOSFODNN7EXAMPLZ"


class Stage:
    """A broker with a vault, somebody who calls and somebody who answers in each of two tenants."""

    def __init__(self, arena: Arena, people: dict[str, tuple[RawAgent, RawAgent]]) -> None:
        self.arena, self.lab, self.people = arena, arena.lab, people

    @property
    def vault(self) -> KvVault:
        assert self.lab.broker.vault is not None
        return self.lab.broker.vault

    async def called(self, user: str, tenant: str = "default", args: dict[str, Any] = ASKED) -> tuple[str, str]:
        """One call for ``user``: its txn and hop."""
        caller, _ = self.people[tenant]
        root = await self.lab.grant(caller.name, "mcp/**", user=user, tenant=tenant)
        frames = await caller.call("mcp/files/read", root.txn, root.grant, args)
        opened = next(one for one in await self.lab.records(root.txn, tenant) if one["kind"] == "hop.opened")
        assert frames[-1].__class__.__name__ == "Result", frames[-1]
        return root.txn, opened["hop"]

    async def ask(self, method: str, path: str, body: Any = None) -> httpx.Response:
        token = {"Authorization": f"Bearer {self.lab.broker.keys.local_token}"}
        async with httpx.AsyncClient(base_url=self.lab.broker.http, headers=token, trust_env=False) as http:
            return await http.request(method, path, json=body)

    async def told(self, method: str, path: str, body: Any = None) -> Any:
        answer = await self.ask(method, path, body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def values(self, name: str, query: str = "") -> list[Any]:
        """What is shown of a hop."""
        return [one["value"] for one in (await self.told("GET", f"/api/vault/{name}{query}"))["contents"]]

    async def bytes_of(self) -> dict[str, bytes]:
        """What lies in the bucket."""
        return await contents(self.lab.broker.nats.core.jetstream(), BUCKET)

    async def verified(self, txn: str, path: str = "") -> dict[str, str]:
        """The evidence of a txn verifies; what was found, by check."""
        found = await self.told("GET", f"/api/chains/{txn}/evidence{path}")
        verdict = verify_evidence(found, KeySet.from_jwks(self.lab.broker.keys.jwks()))
        assert verdict.verified, verdict
        return {check.check: check.where for check in verdict.checks}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with running_broker(tmp_path_factory.mktemp("vault"), CONFIG) as lab, arena_on(lab) as arena:
        people = {}
        for tenant in ("default", OTHER):
            desk = await arena.agent("desk", tenant=tenant)
            files = await arena.agent("files", "mcp", tenant=tenant)

            async def read(taken: Any) -> None:
                said = {"key": SECRET} if taken.dispatch.args == LEAK else SAID
                await taken.done({"answer": "x" * 700_000} if taken.dispatch.args == LARGE else said)

            files.handlers["read"] = read
            await files.serve(tool("read"))
            people[tenant] = (desk, files)
        yield Stage(arena, people)


def operator(monkeypatch: pytest.MonkeyPatch, role: OperatorRole, tenant: str = "default") -> None:
    """From now on whoever asks the API is such a one."""

    async def known(self: LocalToken, request: Any) -> Caller:
        identity = Identity(issuer="corp", iss="https://corp", user="op", tenant=tenant, token="jti")
        return Caller(who="corp:op", abilities=ABILITIES[role], roles=(role,), identity=identity)

    monkeypatch.setattr(LocalToken, "known", known)


async def test_what_is_shown_is_what_the_record_commits_to(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    txn, hop = await stage.called("ann")
    assert await stage.values(f"{txn}.{hop}") == [ASKED, SAID]
    found = await stage.bytes_of()
    mine = {key: value for key, value in found.items() if f".{txn}.{hop}." in key}
    assert len(mine) == 2
    assert not any(b"what was" in value or b"ann" in key.encode() for key, value in mine.items())
    real = KvVault.get

    async def other(self: KvVault, slot: Any) -> bytes | None:
        return (await real(self, slot) or b"").replace(b"what", b"That")

    monkeypatch.setattr(KvVault, "get", other)
    shown = (await stage.told("GET", f"/api/vault/{txn}.{hop}"))["contents"]
    assert [(one["kept"], one["value"]) for one in shown] == [(False, None)] * 2
    assert shown[0]["why"] == "what is kept is not what the record commits to"


async def test_what_a_parked_call_asks_for_and_is_given_is_kept_too(stage: Stage) -> None:
    caller, _ = stage.people["default"]
    worker = await stage.arena.agent()
    await worker.serve(skill("work"))
    resource = f"agent/{worker.name}/work"
    root = await stage.lab.grant(caller.name, "agent/**", user="pam")
    calling = asyncio.ensure_future(caller.call(resource, root.txn, root.grant, ASKED))
    taken = await worker.took(root.txn)
    await taken.park({"question": "which one?"})
    await calling
    hop = taken.dispatch.hop
    calling = asyncio.ensure_future(caller.call(resource, root.txn, root.grant, ASKED, resume=hop, input="the second"))
    await (await worker.took(root.txn, 2)).done(SAID)
    await calling
    assert await stage.values(f"{root.txn}.{hop}") == [ASKED, {"question": "which one?"}, "the second", SAID]


async def test_a_large_answer_is_kept_whole(stage: Stage) -> None:
    txn, hop = await stage.called("lea", args=LARGE)
    assert await stage.values(f"{txn}.{hop}") == [LARGE, {"answer": "x" * 700_000}]
    assert len([key for key in await stage.bytes_of() if f".results.{txn}." in key]) == 2, "in two pieces"


async def test_reading_contents_is_recorded_each_time(stage: Stage) -> None:
    txn, hop = await stage.called("ann")
    for _ in range(2):
        await stage.values(f"{txn}.{hop}")
    seen = [one["what"] for one in (await stage.told("GET", "/api/accesses"))["accesses"]]
    assert seen.count(f"contents of {txn}.{hop}") == 2


async def test_moved_content_opens_nothing(stage: Stage) -> None:
    """The sealed bytes of one call, put where another call's of the same person lie."""
    (txn, hop), (other, there) = await stage.called("ann"), await stage.called("ann", args={"path": "elsewhere"})
    kv = await stage.lab.broker.nats.core.jetstream().key_value(BUCKET)
    found = await stage.bytes_of()
    source = next(key for key in found if f".arguments.{txn}.{hop}." in key)
    target = next(key for key in found if f".arguments.{other}.{there}." in key)
    await kv.put(target, found[source])
    answer = await stage.ask("GET", f"/api/vault/{other}.{there}")
    assert (answer.status_code, answer.json()["error"]["rule"]) == (500, "vault.sealed")
    assert "what was asked" not in answer.text


@pytest.mark.parametrize("role", ["viewer", "approver", "operator"])
async def test_a_viewer_sees_no_content(stage: Stage, monkeypatch: pytest.MonkeyPatch, role: OperatorRole) -> None:
    txn, hop = await stage.called("ann")
    operator(monkeypatch, role)
    for method, path, body in (
        ("GET", f"/api/vault/{txn}.{hop}", None),
        ("GET", f"/api/chains/{txn}/evidence?payloads=all", None),
        ("POST", "/api/vault/erase", {"user": "ann", "reason": "r"}),
        ("POST", "/api/vault/hold", {"user": "ann", "reason": "r"}),
        ("POST", "/api/vault/release", {"user": "ann", "reason": "r"}),
    ):
        answer = await stage.ask(method, path, body)
        assert (answer.status_code, answer.json()["error"]["rule"]) == (403, "operators.administer"), path
    assert (await stage.ask("GET", "/api/vault")).status_code == 200


async def test_nobody_sees_the_contents_of_another_tenant(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    txn, hop = await stage.called("ann", OTHER)
    operator(monkeypatch, "admin")
    for path in (f"/api/vault/{txn}.{hop}", f"/api/vault/{hop}", f"/api/chains/{txn}/evidence?payloads=all"):
        answer = await stage.ask("GET", path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "UNKNOWN_TARGET")
    assert (await stage.ask("GET", f"/api/vault/{txn}.{hop}?tenant={OTHER}")).status_code == 404
    operator(monkeypatch, "admin", OTHER)
    assert await stage.values(f"{txn}.{hop}") == [ASKED, None], "that tenant keeps no results"


async def test_a_namesake_in_another_tenant_is_not_erased(stage: Stage) -> None:
    txn, hop = await stage.called("nora", OTHER)
    mine = await stage.called("nora")
    await stage.told("POST", "/api/vault/erase", {"user": "nora", "reason": "asked for it"})
    assert await stage.values(".".join(mine)) == [None, None]
    assert await stage.values(f"{txn}.{hop}", f"?tenant={OTHER}") == [ASKED, None]


async def test_what_policy_takes_out_of_an_answer_is_in_no_vault(stage: Stage) -> None:
    """What the caller was given is, and is disclosed and checked by a commitment of its own."""
    txn, hop = await stage.called("ann", args=LEAK)
    shown = (await stage.told("GET", f"/api/vault/{txn}.{hop}"))["contents"]
    kept = {one["field"]: (one["kept"], one["why"][:24]) for one in shown}
    assert kept["result_digest"] == (False, "policy replaced somethin") and kept["released_digest"] == (True, "")
    given = next(one["value"] for one in shown if one["field"] == "released_digest")
    assert set(given) == {"key"} and given["key"] and SECRET not in str(given)
    assert len([key for key in await stage.bytes_of() if f".results.{txn}." in key]) == 1
    found = await stage.told("GET", f"/api/chains/{txn}/evidence?payloads=all")
    assert [one["field"] for one in found["payloads"]] == ["args_digest", "released_digest"]
    assert SECRET not in json.dumps(found)
    assert (await stage.verified(txn, "?payloads=all"))["payloads"].startswith("2 disclosed")
    keys = json.dumps(stage.lab.broker.keys.jwks()).encode()
    assert all(ok for _, ok, _ in offline(json.dumps(found).encode(), keys))
    found["payloads"][1]["text"] = found["payloads"][1]["text"].replace("key", "Key")
    assert [name for name, ok, _ in offline(json.dumps(found).encode(), keys) if not ok] == ["payloads"]


async def test_erasing_a_person_breaks_no_proof(stage: Stage) -> None:
    txn, hop = await stage.called("eve")
    _, others = await stage.called("ann")
    before = await stage.told("GET", f"/api/chains/{txn}")
    done = await stage.told("POST", "/api/vault/erase", {"user": "eve", "reason": "asked for it"})
    assert (done["state"], done["key"], done["messages"], done["by"]) == ("erased", True, 2, done["by"])
    assert await stage.values(f"{txn}.{hop}") == [None, None]
    assert await stage.values(others) == [ASKED, SAID], "nobody else's"
    assert await stage.told("GET", f"/api/chains/{txn}") == before
    await stage.verified(txn, "?withhold=nothing")
    said = [
        (one["state"], one["name"], one["why"])
        for one in (await stage.told("GET", "/api/revocations"))["history"]
        if one["name"] == "eve"
    ]
    assert said == [("erasing", "eve", "asked for it"), ("erased", "eve", "asked for it")]
    again = await stage.called("eve")
    assert await stage.values(".".join(again)) == [ASKED, SAID], "what is kept afterwards has a key of its own"
    assert await stage.values(f"{txn}.{hop}") == [None, None]


async def test_evidence_of_somebody_who_was_erased_does_not_name_them(stage: Stage) -> None:
    txn, _ = await stage.called("mia")
    await stage.told("POST", f"/api/chains/{txn}/close")
    assert "mia" in (await stage.ask("GET", f"/api/chains/{txn}/evidence")).text
    await stage.told("POST", "/api/vault/erase", {"user": "mia", "reason": "asked for it"})
    assert "mia" not in (await stage.ask("GET", f"/api/chains/{txn}/evidence")).text
    assert (await stage.verified(txn))["complete"].startswith("closed")
    assert "mia" in (await stage.ask("GET", f"/api/chains/{txn}/evidence?withhold=nothing")).text, "whoever has to know"
    said = [one["what"] for one in (await stage.told("GET", "/api/accesses"))["accesses"] if txn in one["what"]]
    assert said[-1] == f"evidence of {txn}, whole"


async def test_what_was_restored_of_an_erased_subject_opens_nothing(stage: Stage) -> None:
    """Somebody has a copy of the stream, and puts the messages back: before and after the person has a key again."""
    txn, hop = await stage.called("zoe")
    copy = {key: value for key, value in (await stage.bytes_of()).items() if f".{txn}.{hop}." in key}
    await stage.told("POST", "/api/vault/erase", {"user": "zoe", "reason": "asked for it"})
    kv = await stage.lab.broker.nats.core.jetstream().key_value(BUCKET)
    for key, value in copy.items():
        await kv.put(key, value)
    assert await stage.values(f"{txn}.{hop}") == [None, None]
    await stage.called("zoe")
    answer = await stage.ask("GET", f"/api/vault/{txn}.{hop}")
    assert (answer.status_code, answer.json()["error"]["rule"]) == (500, "vault.sealed")


async def test_a_hold_refuses_an_erasure(stage: Stage) -> None:
    txn, hop = await stage.called("hal")
    await stage.told("POST", "/api/vault/hold", {"user": "hal", "reason": "case 17"})
    answer = await stage.ask("POST", "/api/vault/erase", {"user": "hal", "reason": "asked for it"})
    body = answer.json()["error"]
    assert (answer.status_code, body["code"], body["rule"]) == (409, "CONFLICT", "vault.held")
    assert "local:" in body["message"] and "case 17" in body["message"], "who, and why"
    assert await stage.values(f"{txn}.{hop}") == [ASKED, SAID]
    await stage.told("POST", "/api/vault/release", {"user": "hal", "reason": "closed"})
    await stage.told("POST", "/api/vault/erase", {"user": "hal", "reason": "asked for it"})
    assert await stage.values(f"{txn}.{hop}") == [None, None]


async def test_of_an_erasure_and_a_hold_at_once_the_one_that_was_written_first_holds(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hold that is written after the erasure has looked for one, and before it is written down itself; and the other way round."""
    held, gone = await stage.called("ida"), await stage.called("ivo")
    desk = next(one.vault for one in stage.lab.broker.desks if one.tenant == "default")
    real = AdminStream.append

    async def first(self: AdminStream, entry: Entry) -> Any:
        if (entry.state, entry.name) == ("erasing", "ida"):
            await desk.hold(Person(user="ida", reason="case 19"), "a")
        if (entry.state, entry.name) == ("held", "ivo"):
            await real(self, msgspec.structs.replace(entry, kind="erasure", state="erasing"))
        return await real(self, entry)

    monkeypatch.setattr(AdminStream, "append", first)
    with pytest.raises(Refusal, match="case 19"):
        await desk.erase(Person(user="ida", reason="asked for it"), "b")
    with pytest.raises(Refusal, match="has begun"):
        await desk.hold(Person(user="ivo", reason="case 20"), "a")
    await desk.upkeep()
    assert await stage.values(".".join(held)) == [ASKED, SAID]
    assert await stage.values(".".join(gone)) == [None, None]


async def test_a_hold_keeps_what_would_be_forgotten(stage: Stage) -> None:
    held, free = await stage.called("max"), await stage.called("moe")
    await stage.told("POST", "/api/vault/hold", {"user": "max", "reason": "case 18"})
    later = stage.lab.broker.ports.clock.now() + 1
    await stage.vault.expire("default", "results", later, frozenset({"max"}))
    assert await stage.values(".".join(held)) == [ASKED, SAID]
    assert await stage.values(".".join(free)) == [ASKED, None], "its arguments are another class"


async def test_what_is_older_than_its_time_is_forgotten_and_nothing_else(stage: Stage) -> None:
    old = await stage.called("old")
    between = stage.lab.broker.ports.clock.now()
    js = stage.lab.broker.nats.core.jetstream()
    while stage.lab.broker.ports.clock.now() <= between:
        await js.stream_info(STREAM)
    new = await stage.called("new")
    await stage.vault.expire("default", "arguments", between, frozenset())
    assert await stage.values(".".join(old)) == [None, SAID]
    assert await stage.values(".".join(new)) == [ASKED, SAID]


async def test_evidence_discloses_what_is_wanted_and_withholds_the_rest(stage: Stage) -> None:
    txn, hop = await stage.called("ann")
    jwks = stage.lab.broker.keys.jwks()
    path = f"/api/chains/{txn}/evidence"
    assert (await stage.verified(txn))["payloads"].startswith("none disclosed: 2 commitments")
    assert (await stage.verified(txn, f"?payloads={'0' * 16}"))["payloads"].endswith("2 withheld")
    assert (await stage.verified(txn, "?payloads=all"))["payloads"].startswith("2 disclosed")
    found = await stage.told("GET", f"{path}?payloads={hop}")
    assert [json.loads(one["text"]) for one in found["payloads"]] == [ASKED, SAID]
    found["payloads"] = found["payloads"][1:]
    assert all(ok for _, ok, _ in offline(json.dumps(found).encode(), json.dumps(jwks).encode()))
    seen = [one["what"] for one in (await stage.told("GET", "/api/accesses"))["accesses"]]
    assert f"evidence of {txn} with contents of {hop}" in seen
    for change in ({"text": '{"answer":"else"}'}, {"salt": "A" * 43}, {"record": 1}):
        forged = {**found, "payloads": [{**found["payloads"][0], **change}]}
        bad = verify_evidence(forged, KeySet.from_jwks(jwks))
        assert [check.check for check in bad.checks if not check.ok] == ["payloads"]
        wrong = [name for name, ok, _ in offline(json.dumps(forged).encode(), json.dumps(jwks).encode()) if not ok]
        assert wrong == ["payloads"]
    for query in ("?payloads=", "?other=1"):
        assert (await stage.ask("GET", path + query)).status_code == 400


async def test_a_report_shows_no_forged_content(stage: Stage) -> None:
    txn, _ = await stage.called("ann")
    found = await stage.told("GET", f"/api/chains/{txn}/evidence?payloads=all")
    keys = KeySet.from_jwks(stage.lab.broker.keys.jwks())
    assert "what was said" in page(found, verify_evidence(found, keys), str)
    found["payloads"][1]["text"] = found["payloads"][1]["text"].replace("said", "never said")
    assert "never said" not in page(found, verify_evidence(found, keys), str)


async def test_an_empty_vault_and_one_whose_end_was_erased_are_kept_up(tmp_path: Path) -> None:
    async with running_broker(tmp_path, {"vault": {"on": True, "arguments": 0.0}}) as lab:
        vault, now, slot = lab.broker.vault, lab.broker.ports.clock.now, SLOT
        assert vault is not None
        assert await lab.broker.desks[0].vault.upkeep() == 0
        for user in ("ann", "bob", "eve"):
            assert await vault.put(slot._replace(user=user), b"1")
        assert not await vault.put(slot._replace(kind="arguments"), b"1"), "that class is not kept"
        assert await vault.shred("default", "eve", lambda: None) == (True, 1)
        assert await vault.expire("default", "results", now() + 1, frozenset({"bob"})) == 1
        assert await vault.expire("default", "results", now() + 1, frozenset()) == 1
        assert await vault.expire("default", "results", now() + 1, frozenset()) == 0


async def test_who_is_erased_is_named_with_a_reason(stage: Stage) -> None:
    for body in ({"user": "", "reason": "r"}, {"user": "ann", "reason": " "}, {"user": "a\x00", "reason": "r"}, {}):
        assert (await stage.ask("POST", "/api/vault/erase", body)).status_code == 400
    assert (await stage.ask("POST", "/api/vault/release", {"user": "nobody", "reason": "r"})).status_code == 404


async def test_without_a_vault_nothing_is_kept_or_erased(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("off")
    async with running_broker(folder) as lab:
        assert lab.broker.vault is None and lab.broker.ports.vault is None
        assert not (folder / "data" / "vault").exists()
        desk = lab.broker.desks[0].vault
        with pytest.raises(Refusal, match="switched off"):
            await desk.erase(Person(user="ann", reason="asked for it"), "a")
        assert (await desk.told())["erased"] == []
