"""Evidence without personal fields: it proves what it proved, nobody is named in it, and each field opens by itself."""

from __future__ import annotations

import copy
import hashlib
import hmac
import itertools
import json
import re
from typing import Any

import pytest

from remit_broker import verifier
from remit_broker.core.evidence import Verdict, verify_evidence
from remit_broker.core.fold import Corrupt, fold_all
from remit_broker.core.report import page
from remit_broker.core.withholding import shown, withhold
from remit_schemas.budget import Budget
from remit_schemas.canonical import canonical
from remit_schemas.errors import Code, Refusal
from remit_schemas.records import OWNER, Facts, hash_of
from remit_schemas.scope import Detail
from remit_schemas.veil import GROUPS, PERSONAL, veil_of
from tests.support.evidence import CHILD, GRANDCHILD, SECOND, TRUSTED, Case, reproved
from tests.support.story import ROOT

Evidence = dict[str, Any]


def case(who: str = OWNER) -> Case:
    """Ann's task, in which policy is told of her roles, eve approves a call, and somebody writes reasons."""
    made = Case()
    made.open(
        CHILD, ROOT, "agent/researcher/brief", facts=Facts(action="delegate", roles=("nurse",), groups=("ward-9",))
    )
    made.story.close(CHILD, code=None, reason="ann asked for too much")
    made.approve("5" * 16, ROOT, "agent/critic/review")
    made.open(SECOND, ROOT, "agent/critic/review", approval="5" * 16)
    made.story.close(SECOND)
    made.story.end(who=who)
    return made


@pytest.fixture(scope="module")
def whole() -> Evidence:
    made = case().evidence()
    assert verified(made).verified
    return made


def verified(evidence: Evidence) -> Verdict:
    return verify_evidence(evidence, TRUSTED)


def alone(evidence: Evidence) -> dict[str, tuple[bool, str]]:
    """What the one file says that is handed out."""
    found = verifier.verify(json.dumps(evidence).encode(), json.dumps(TRUSTED.to_jwks()).encode())
    return {name: (ok, where) for name, ok, where in found}


def bad(evidence: Evidence) -> str:
    """The first check that fails."""
    return next(check.check for check in verified(evidence).checks if not check.ok)


def fails(evidence: Evidence, check: str) -> None:
    """Both verifiers say so, and where."""
    assert {one.check for one in verified(evidence).checks if not one.ok} >= {check}
    assert not all(ok for ok, _ in alone(evidence).values())


@pytest.mark.parametrize("groups", [GROUPS, ("user",), ("claims",), ("people", "user"), ("reasons",)])
def test_what_is_withheld_leaves_every_proof_standing(whole: Evidence, groups: tuple[str, ...]) -> None:
    left = withhold(whole, groups)
    verdict = verified(left)
    assert verdict.verified, verdict.checks
    assert all(ok for ok, _ in alone(left).values())
    said = {check.check: check.where for check in verdict.checks}
    assert said["complete"].startswith("closed by record") and "withheld" in said["personal"]
    assert shown(left).withheld


def test_nothing_names_a_user_who_is_withheld(whole: Evidence) -> None:
    assert whole["grants"] and whole["refusals"]
    left = withhold(whole, GROUPS)
    text = json.dumps(left)
    for word in ("ann", "eve", "nurse", "ward-9", "too much"):
        assert not re.search(rf"\b{word}\b", text)
        assert re.search(rf"\b{word}\b", json.dumps(whole))
    # Neither do the records' own hashes let a name be tried: what they were taken over is not all there.
    first = {**whole["records"][0], "blind": ""}
    assert hash_of(first) != left["records"][0]["hash"] == whole["records"][0]["hash"]
    assert left["grants"] == [] == left["refusals"]
    # The page says it too.
    assert not re.search(r"\bann\b", page(left, verified(left), str))


def test_one_field_is_opened_and_says_nothing_of_the_others(whole: Evidence) -> None:
    left = withhold(whole, GROUPS, ["0.user"])
    assert verified(left).verified and all(ok for ok, _ in alone(left).values())
    assert [one["field"] for one in left["personal"]] == ["user"] and json.loads(left["personal"][0]["text"]) == "ann"
    records = shown(left).records
    assert records[0]["user"] == "ann" and left["grants"], "the grants may be there, which say no more"
    assert "eve" not in json.dumps(left) and "0.auth" in shown(left).withheld
    # The salt of one opens no other: guessing with it gives none of the commitments.
    salt, closed = left["personal"][0]["salt"], [v for r in left["records"] for v in r.values() if isinstance(v, dict)]
    key = verifier.b64(salt, url=True)
    guesses = {hmac.new(key, canonical(name), "sha256").hexdigest() for name in ("ann", "eve", "test", "local:eve")}
    assert len(guesses & {one.get("withheld") for one in closed}) == 1


def test_a_file_in_which_little_is_withheld_keeps_its_grants(whole: Evidence) -> None:
    left = withhold(whole, ["claims"])
    assert left["grants"] == whole["grants"] and "nurse" not in json.dumps(left)
    assert {check.check: check.where for check in verified(left).checks}["grants"].startswith("3 grants")


def test_a_forged_name_opens_nothing(whole: Evidence) -> None:
    left = withhold(whole, GROUPS, ["0.user"])
    for change in ({"text": '"bob"'}, {"field": "auth"}, {"record": 1}, {"salt": "A" * 43}, {"more": 1}, {"text": 5}):
        forged = copy.deepcopy(left)
        forged["personal"][0].update(change)
        fails(forged, "records")
    twice = copy.deepcopy(left)
    twice["personal"] *= 2
    fails(twice, "records")


def test_what_is_shown_of_a_veiled_record_cannot_be_changed(whole: Evidence) -> None:
    """Neither a commitment, nor anything beside it: the record that follows vouches for all of it."""
    left = withhold(whole, GROUPS)
    for number in range(len(left["records"]) - 1):
        for name, value in left["records"][number].items():
            forged = copy.deepcopy(left)
            forged["records"][number][name] = {"withheld": "0" * 64} if isinstance(value, dict) else "x"
            assert bad(forged) == "records"
            with pytest.raises((verifier.Bad, TypeError, AttributeError)):
                verifier.records(forged)
    cut = copy.deepcopy(left)
    cut["records"].pop()
    reproved(cut)
    assert not verified({**cut, "complete": True}).verified


def test_a_record_without_a_veil_is_not_passed_off_as_veiled(whole: Evidence) -> None:
    """A forger who veils a record anew, with another name in it, would have to change the next one too."""
    forged = copy.deepcopy(whole)
    forged["records"][0]["user"] = "bob"
    fails(withhold(forged, GROUPS), "records")


def test_the_last_record_is_shown_whole(whole: Evidence) -> None:
    named = case("local:mallory").evidence()
    with pytest.raises(Refusal) as no:
        withhold(named, GROUPS)
    assert (no.value.body.code, no.value.body.rule) == (Code.CONFLICT, "evidence.last")
    assert verified(withhold(named, ["user", "claims", "reasons"])).verified
    with pytest.raises(Refusal):
        withhold(case("local:ann").evidence(), ["user"])
    forged = copy.deepcopy(withhold(whole, GROUPS))
    forged["records"][-1]["who"] = {"withheld": "0" * 64}
    forged["records"][-1]["blind"] = ""
    fails(forged, "records")


def test_records_of_older_brokers_cannot_be_veiled(whole: Evidence) -> None:
    old = copy.deepcopy(whole)
    old["records"][0]["blind"] = ""
    with pytest.raises(Refusal) as no:
        withhold(old, ["user"])
    assert no.value.body.rule == "evidence.old"


def test_what_is_no_group_and_no_field_is_refused(whole: Evidence) -> None:
    for groups, but, rule in (
        (["names"], [], "evidence.withhold"), (["claims"], ["0.user"], "evidence.disclose"),
        (["people"], ["4.token"], "evidence.disclose"),
    ):  # fmt: skip
        with pytest.raises(Refusal) as no:
            withhold(whole, groups, but)
        assert no.value.body.rule == rule and no.value.body.ask


def test_a_veil_that_is_not_that_of_the_record_before_is_refused(whole: Evidence) -> None:
    records = copy.deepcopy(whole["records"])
    assert records[1]["veil"] == veil_of(records[0]) != ""
    records[1]["veil"] = "0" * 64
    for one, two in itertools.pairwise(records):
        one["hash"] = hash_of(one)
        two["prev"] = one["hash"]
    with pytest.raises(Corrupt, match="#1: veil is not"):
        fold_all(records)


def test_where_grants_are_withheld_scopes_are_judged_by_the_records() -> None:
    made = Case()
    made.story.open(
        CHILD,
        ROOT,
        Budget(1000, 100, 5),
        resource="agent/researcher/brief",
        scope=(Detail(resource="mcp/git/git_log"),),
    )
    made.story.open(
        GRANDCHILD, CHILD, Budget(1, 1, 1), resource="mcp/git/git_log", scope=(Detail(resource="mcp/git/**"),)
    )
    made.story.close(GRANDCHILD)
    made.story.close(CHILD)
    made.story.end(who=OWNER)
    left = withhold({**case().evidence(), "records": made.story.records}, GROUPS)
    reproved(left)
    found = {check.check: check for check in verified(left).checks}
    assert not found["links"].ok and found["links"].where.startswith("record 2:"), found
    assert found["records"].ok and found["complete"].ok


def test_the_verifier_that_is_handed_out_knows_the_same_fields() -> None:
    assert {kind: tuple(fields) for kind, fields in PERSONAL.items()} == verifier.PERSONAL


def test_a_veil_can_be_computed_with_a_hash_function_alone(whole: Evidence) -> None:
    """As docs/wire.md says it, for whoever writes a verifier of their own."""
    left = withhold(whole, GROUPS)
    first, second = left["records"][:2]
    assert second["veil"] == hashlib.sha256(canonical(first)).hexdigest()
