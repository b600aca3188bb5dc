"""The checker sees: an honest story passes, and of each promise a planted breach is found under its name."""

from __future__ import annotations

import base64
import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.support.ledger_books import Json, sealed
from tests.support.ledger_checker import Checker, claims_of

TXN = "ab" * 16
START = 1_800_000_000
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
KEYS = {"k1": KEY.public_key().public_bytes_raw()}
CAPS = {("user", "ann", "month"): {"calls": 6}, ("tool", "default", "day"): {"calls": 2}}


def money(calls: int, usd: int = 0) -> Json:
    return {"usd_micros": usd, "tokens": 0, "calls": calls}


def _text(value: Any) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def token(claims: Json) -> str:
    signed = f"{_text({'alg': 'Ed25519', 'kid': 'k1'})}.{_text(claims)}"
    return f"{signed}.{_text(KEY.sign(signed.encode()))}"


def stamp(second: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(START + second, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Story:
    """A ledger and what was seen outside, written by hand. Whatever is planted is written through it too, so that it is sealed."""

    def __init__(self) -> None:
        self.entries: list[Json] = []
        self.events: list[Json] = []
        self.refusals: list[Json] = []
        self.accounts: list[Json] = []
        self.second = 0.0

    def record(self, kind: str, hop: str, **fields: Any) -> Json:
        """Append a record, with the grant it mints where it mints one."""
        self.second += 1
        last: Json = self.entries[-1]["record"] if self.entries else {"seq": -1, "hash": "0" * 64}
        record = {
            "v": 1, "kind": kind, "tenant": "default", "txn": TXN, "hop": hop, "seq": last["seq"] + 1,
            "prev": last["hash"], "at": stamp(self.second), "by": "r1", **fields,
        }  # fmt: skip
        self.entries.append({"at": len(self.entries) + 1, "stored": START + self.second, "record": record})
        self.seal(-1)
        return record

    def seal(self, index: int) -> None:
        """Seal a record that was changed, and mint its grant anew."""
        entry = self.entries[index]
        record = entry["record"]
        record["hash"] = sealed(record)
        if "jti" in record and record["kind"] != "grant.revoked":
            aud = record.get("agent") or (record["resource"].split("/")[1] if "resource" in record else "worker")
            claims = {"jti": record["jti"], "rec": record["hash"], "aud": aud, "exp": record["exp"]}
            if "budget" in record:
                claims["budget"] = record["budget"]
            entry["grant"] = token(claims)

    def opened(self, hop: str, parent: str = "root", resource: str = "agent/worker/work", **fields: Any) -> Json:
        deep = 1 if parent == "root" else 2
        caller = "desk" if parent == "root" else "worker"
        return self.record(
            "hop.opened", hop,
            **{
                "parent": parent, "caller": caller, "resource": resource, "depth": deep, "max_depth": 4,
                "jti": f"{TXN}.{hop}.1", "budget": money(2), "exp": START + 60, "deadline": (START + 60) * 1000,
                "link": f"link-{hop}", **fields,
            },
        )  # fmt: skip

    def closed(self, hop: str, calls: int = 1, **fields: Any) -> Json:
        ending = {"outcome": "ok", "cost": money(0), "spent": money(calls), "overrun": money(0), **fields}
        return self.record("hop.closed", hop, **ending)

    def see(self, what: str, **fields: Any) -> Json:
        self.second += 0.25
        event = {"what": what, "at": START + self.second, "txn": TXN, **fields}
        self.events.append(event)
        return event

    def dispatched(self, hop: str, index: int = -1, **fields: Any) -> Json:
        token = self.entries[index]["grant"]
        return self.see("dispatched", **{"hop": hop, "grant": token, "deadline": (START + 60) * 1000, **fields})

    def heard(self, hop: str, frame: str, /, call: str = "", **fields: Any) -> Json:
        return self.see("heard", call=call or hop, link=f"link-{hop}", frame={"frame": frame, **fields})

    def check(self) -> Checker:
        checker = Checker(CAPS, KEYS)
        for entry in self.entries:
            checker.entry(entry)
        for event in self.events:
            checker.event(event)
        checker.finish(refusals=self.refusals, accounts=self.accounts)
        return checker


def honest() -> Story:
    """One task: a worker that calls a tool, parks, resumes and ends; then a hop whose replica died."""
    story = Story()
    story.record(
        "txn.opened",
        "root",
        user="ann",
        agent="desk",
        jti=f"{TXN}.root.1",
        budget=money(9, 100),
        exp=START + 60,
        max_depth=4,
    )
    story.opened("h1", budget=money(4, 50))
    story.heard("h1", "accepted", txn=TXN, hop="h1")
    story.dispatched("h1")
    story.opened("t1", "h1", "mcp/files/read", brings=["web"])
    story.dispatched("t1")
    story.closed("t1", 2, cost=money(1), labels=["web"])
    story.heard("t1", "result", cost=money(2))
    story.record("grant.renewed", "h1", jti=f"{TXN}.h1.2", exp=START + 60)
    asked = {"request_digest": "d", "labels": ["web"]}
    story.record("hop.parked", "h1", cost=money(0, 10), spent=money(3, 10), overrun=money(0), **asked)
    story.heard("h1", "input_required", cost=money(3, 10))
    story.record(
        "hop.resumed", "h1", jti=f"{TXN}.h1.3", budget=money(2), exp=START + 60, deadline=(START + 60) * 1000, labels=["web"]
    )  # fmt: skip
    story.dispatched("h1")
    story.closed("h1", 4, spent=money(4, 10), labels=["web"])
    story.heard("h1", "result", call="again", cost=money(4, 10))
    story.opened("h2", labels=["web"], endorser="rating", lowers=["web"])
    story.closed("h2", 2, outcome="unknown", lowered=["web"])
    story.record("txn.closed", "root", spent=money(6, 10), overrun=money(0), reason="closed", who="desk")
    story.see("acked", kind="txn.closed")
    story.see("acked", hash=story.entries[0]["record"]["hash"])
    story.see("seen", seq=3, hash=story.entries[2]["record"]["hash"])
    story.accounts.append(row(spent=5, leased=1))
    refusal = {"kind": "hop.refused", "txn": TXN, "hop": "no", "code": "OUT_OF_SCOPE", "cause": "", "count": 3}
    story.refusals.append({**refusal, "hash": sealed(refusal), "cause": "for operators"})
    return story


def row(*, cap: int = 6, spent: int = 0, held: int = 0, leased: int = 0) -> Json:
    """What an account says of itself."""
    return {
        "kind": "user", "name": "ann", "window": "month", "ends": "2027-02-01T00:00:00.000Z", "cap": {"calls": cap},
        "spent": {"calls": spent}, "held": {"calls": held}, "leased": {"calls": leased},
    }  # fmt: skip


def test_an_honest_story_has_no_violation() -> None:
    checker = honest().check()
    assert checker.violations == []
    assert checker.counts["dispatched"] == 3
    assert checker.counts["orphans"] == 1
    assert checker.counts["hop.refused"] == 3


def test_an_account_of_another_tenant_is_not_that_of_the_first() -> None:
    story = honest()
    story.accounts.append({**row(), "tenant": "acme"})
    assert story.check().violations == []
    story.accounts.append(row())
    assert {one.rule for one in story.check().violations} == {"account.forgotten"}


def test_what_a_real_broker_wrote_has_no_violation() -> None:
    page = (Path(__file__).parents[2] / "docs" / "life-of-a-hop.md").read_text(encoding="utf-8")
    records = [json.loads(text) for text in re.findall(r"```json\n(\{\"kind\".*?)\n```", page, re.DOTALL)]
    checker = Checker(keys={})
    for record in records[:3]:
        checker.entry({"record": record})
    assert {one.rule for one in checker.finish(refusals=records[3:])} == {"grant.unbound"}, (
        "the page leaves the tokens out"
    )
    assert [record["kind"] for record in records] == ["txn.opened", "hop.opened", "hop.closed", "hop.refused"]


# What is planted → the rule that must name it. Each changes the story in one place.


def _change(index: int, **fields: Any) -> Callable[[Story], None]:
    """Another content, sealed, with a grant that fits; the records after it do not name it any more."""

    def plant(story: Story) -> None:
        story.entries[index]["record"].update(fields)
        for later in range(index, len(story.entries)):
            if later > index:
                story.entries[later]["record"]["prev"] = story.entries[later - 1]["record"]["hash"]
            story.seal(later)
        story.events = []  # what was seen names hashes that are other ones now

    return plant


def _unsealed(story: Story) -> None:
    story.entries[6]["record"]["at"] = stamp(99)


def _higher_ceiling(story: Story) -> None:
    for entry in story.entries:
        if entry["record"]["hop"] == "h1" and (held := entry.get("grant")):
            resumed = entry["record"]["kind"] == "hop.resumed"
            entry["grant"] = token({**claims_of(held), "labels": ["mail", "web"] if resumed else ["web"]})


def _lost_record(story: Story) -> None:
    del story.entries[4]
    story.accounts = []


def _exchanged(story: Story) -> None:
    story.entries[4]["record"]["prev"] = "1" * 64
    story.seal(4)


def _out_of_order(story: Story) -> None:
    story.entries[3]["at"], story.entries[4]["at"] = 5, 4


def _after_the_end(story: Story) -> None:
    story.opened("late")


def _under_closed(story: Story) -> None:
    end = story.entries.pop()
    story.opened("t2", "h1", budget=money(1))
    story.closed("t2", 1)
    story.entries.append(end)


def _under_parked(story: Story) -> None:
    at = next(i for i, entry in enumerate(story.entries) if entry["record"]["kind"] == "hop.parked")
    rest = story.entries[at + 1 :]
    del story.entries[at + 1 :]
    story.opened("t2", "h1", budget=money(1))
    story.entries += rest


def _under_revoked(story: Story) -> None:
    rest = story.entries[2:]
    del story.entries[2:]
    story.record("grant.revoked", "h1", jti=f"{TXN}.h1.1", who="ann")
    story.entries += rest


def _opened_twice(story: Story) -> None:
    end = story.entries.pop()
    story.opened("h1")
    story.entries.append(end)


def _key_twice(story: Story) -> None:
    for index in (1, 2):
        _change(index, idem="f" * 64)(story)


def _left_open(story: Story) -> None:
    story.entries.pop()
    story.entries.pop()
    story.events = [event for event in story.events if event["what"] != "acked"]
    story.accounts = []


def _forged(story: Story) -> None:
    head, body, signature = story.entries[1]["grant"].split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    story.entries[1]["grant"] = f"{head}.{_text({**claims, 'max_depth': 9})}.{signature}"


def _foreign_record(story: Story) -> None:
    story.entries[1]["grant"] = story.entries[2]["grant"]


def _no_grant(story: Story) -> None:
    del story.entries[1]["grant"]


def _event(what: str, number: int, how: Callable[[Json], Any]) -> Callable[[Story], None]:
    def plant(story: Story) -> None:
        how([event for event in story.events if event["what"] == what][number])

    return plant


def _dispatched_twice(story: Story) -> None:
    story.dispatched("h1", 1)


def _without_intent(story: Story) -> None:
    claims = {"jti": f"{TXN}.ghost.1", "rec": "e" * 64, "aud": "worker", "exp": START + 60}
    story.see("dispatched", hop="ghost", grant=token(claims), deadline=(START + 60) * 1000)


def _foreign_grant(story: Story) -> None:
    story.dispatched("h3", 2)


def _result_of_nothing(story: Story) -> None:
    story.heard("ghost", "result", cost=money(1))


def _result_of_unknown(story: Story) -> None:
    story.heard("h2", "result", cost=money(2))


def _ended_twice(story: Story) -> None:
    story.heard("h1", "error", call="again", error={"code": "CANCELLED"})


def _lost_opening(story: Story) -> None:
    story.heard("ghost", "accepted", txn=TXN, hop="ghost")


def _lost_revocation(story: Story) -> None:
    story.see("acked", kind="grant.revoked")


def _lost_hash(story: Story) -> None:
    story.see("acked", hash="d" * 64)


def _replaced(story: Story) -> None:
    story.see("seen", seq=4, hash="c" * 64)


def _parked_unrecorded(story: Story) -> None:
    story.heard("h2", "input_required", cost=money(2))


def _over_the_cap(story: Story) -> None:
    story.accounts[0] = row(spent=6, leased=1)


def _forgotten(story: Story) -> None:
    story.accounts[0] = row(spent=1)


def _refused_and_opened(story: Story) -> None:
    refusal = {"kind": "hop.refused", "txn": TXN, "hop": "h1", "code": "POLICY_DENIED", "cause": ""}
    story.refusals.append({**refusal, "hash": sealed(refusal)})


def _refusal_rewritten(story: Story) -> None:
    story.refusals[0]["code"] = "CYCLE"


PLANTED: dict[str, tuple[str, Callable[[Story], None]]] = {
    "a record was changed": ("chain.hash", _unsealed),
    "a record is gone": ("chain.seq", _lost_record),
    "a record follows another one": ("chain.prev", _exchanged),
    "a record vouches for another form of the one before": ("chain.veil", _change(1, veil="0" * 64)),
    "a record stands before its elder": ("chain.order", _out_of_order),
    "a record of no kind": ("chain.form", _change(5, kind="hop.forgotten")),
    "a record of another txn": ("chain.form", _change(5, tenant="other")),
    "a hold larger than what is left": ("budget.overspent", _change(2, budget=money(9))),
    "a hold of money that is not there": ("budget.overspent", _change(1, budget=money(4, 101))),
    "a hop that costs nothing": ("budget.overspent", _change(2, budget=money(0))),
    "a charge that is too small": ("budget.settled", _change(3, spent=money(1))),
    "an unknown end that gives something back": ("budget.settled", _change(9, spent=money(1))),
    "a parked hop that keeps its hold": ("budget.settled", _change(5, spent=money(4, 50))),
    "totals that are not the tree's": ("budget.settled", _change(10, spent=money(4, 10))),
    "something after the end of the txn": ("use.after-close", _after_the_end),
    "something under a closed hop": ("use.after-close", _under_closed),
    "something under a parked hop": ("use.after-close", _under_parked),
    "something under a revoked hop": ("use.after-revoke", _under_revoked),
    "a hop opened twice": ("hop.opened-twice", _opened_twice),
    "an idempotency key used twice": ("hop.opened-twice", _key_twice),
    "a hop left open": ("hop.left-open", _left_open),
    "a child that outlives its parent": ("grant.wider", _change(2, exp=START + 61)),
    "a child that goes deeper": ("grant.wider", _change(2, max_depth=5)),
    "a resumption with a higher ceiling of labels": ("grant.wider", _higher_ceiling),
    "a renewal that outlives the parent": ("grant.wider", _change(4, exp=START + 61)),
    "a renewal that skips a number": ("grant.unbound", _change(4, jti=f"{TXN}.h1.3")),
    "a caller that does not hold the grant": ("grant.unbound", _change(2, caller="thief")),
    "a grant nobody signed": ("grant.unsigned", _forged),
    "a grant of another record": ("grant.unbound", _foreign_record),
    "a record without its grant": ("grant.unbound", _no_grant),
    "a hop dispatched twice": ("dispatch.twice", _dispatched_twice),
    "a dispatch without an intent": ("dispatch.without-intent", _without_intent),
    "a dispatch with another hop's grant": ("dispatch.foreign-grant", _foreign_grant),
    "a dispatch before its intent": ("dispatch.before-intent", _event("dispatched", 0, lambda e: e.update(at=START + 1))),
    "a result without a close": ("result.without-close", _result_of_nothing),
    "a result of a hop that ended unknown": ("result.without-close", _result_of_unknown),
    "a result before its close": ("result.before-close", _event("heard", 1, lambda e: e.update(at=START + 1))),
    "a result at another cost": ("result.without-close", _event("heard", 1, lambda e: e["frame"].update(cost=money(1)))),
    "a question without a record": ("result.without-close", _parked_unrecorded),
    "two ends of one call": ("result.twice", _ended_twice),
    "an accepted hop that is gone": ("ack.lost", _lost_opening),
    "a revocation that is gone": ("ack.lost", _lost_revocation),
    "a known record that is gone": ("ack.lost", _lost_hash),
    "a place in the stream that holds another record": ("ack.lost", _replaced),
    "hops beyond a cap": ("account.overspent", _change(3, cost=money(3), spent=money(2), overrun=money(2))),
    "an account beyond its cap": ("account.overspent", _over_the_cap),
    "an account that forgot": ("account.forgotten", _forgotten),
    "an answer without what its tool brings": ("labels.lost", _change(3, labels=[])),
    "a question without its labels": ("labels.lost", _change(5, labels=[])),
    "an input without what its caller knows": ("labels.lost", _change(6, labels=[])),
    "a call without what its caller knows": ("labels.lost", _change(8, labels=[])),
    "a label that is lost on the way up": ("labels.lost", _change(7, labels=[])),
    "a call from which nobody may take a label": ("labels.lowered", _change(8, labels=[], lowered=["web"])),
    "a label that nobody may lower": ("labels.lowered", _change(3, labels=[], lowered=["web"])),
    "a refused call that is a hop": ("refusal.opened", _refused_and_opened),
    "a refusal that was rewritten": ("refusal.hash", _refusal_rewritten),
}  # fmt: skip


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_breach_is_found(planted: str) -> None:
    rule, plant = PLANTED[planted]
    story = copy.deepcopy(honest())
    plant(story)
    found = story.check().violations
    assert rule in {one.rule for one in found}, [str(one) for one in found]


def test_every_rule_has_a_planted_breach() -> None:
    support = Path(__file__).parents[1] / "support"
    text = "".join((support / f"ledger_{name}.py").read_text(encoding="utf-8") for name in ("checker", "books"))
    named = set(
        re.findall(r'"((?:account|ack|budget|chain|dispatch|grant|hop|labels|refusal|result|use)\.[a-z-]+)"', text)
    )
    kinds = {"hop.opened", "hop.closed", "hop.parked", "hop.resumed", "grant.revoked", "grant.renewed", "hop.refused"}
    assert named - kinds == {rule for rule, _ in PLANTED.values()}


def test_what_the_bus_delivers_twice_or_late_is_no_dispatch_of_the_broker() -> None:
    story = honest()
    for event in [event for event in story.events if event["what"] == "dispatched"]:
        event["message"] = event["hop"] + str(event["at"])
        story.events.append(dict(event))
    story.dispatched("h1", 1, at=START + 60.5)
    checker = story.check()
    assert checker.violations == []
    assert (checker.counts["dispatched"], checker.counts["dispatched.late"]) == (3, 1)


def test_a_call_whose_intent_could_not_be_known_may_be_refused_and_stored() -> None:
    story = honest()
    refusal = {"kind": "hop.refused", "txn": TXN, "hop": "h2", "code": "LEDGER_UNAVAILABLE", "cause": ""}
    story.refusals.append({**refusal, "hash": sealed(refusal)})
    checker = story.check()
    assert checker.violations == []
    assert checker.counts["refused.unknown"] == 1


def test_the_checker_knows_nothing_of_the_broker() -> None:
    support = Path(__file__).parents[1] / "support"
    for name in ("checker", "books"):
        assert not re.search(r"import.*remit|from remit", (support / f"ledger_{name}.py").read_text(encoding="utf-8"))
