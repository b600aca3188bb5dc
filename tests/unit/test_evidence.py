"""Evidence: whatever is changed in the file is found, and the first bad place is named."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remit_broker.core.evidence import Verdict, read, verify_evidence
from remit_schemas import approval
from remit_schemas.budget import Budget
from remit_schemas.errors import Refusal
from remit_schemas.grant import mint, parse
from remit_schemas.keys import KeySet
from remit_schemas.records import hash_of
from tests.support.evidence import (
    CHILD,
    GRANDCHILD,
    KEY,
    LARGE,
    OTHER,
    SEAL,
    SECOND,
    TRUSTED,
    Case,
    closed_case,
    long_case,
    reproved,
    resealed,
)
from tests.support.story import ROOT, TXN, hop_id

Evidence = dict[str, Any]
GOOD: Evidence = closed_case().evidence()
CONTENT = ("v", "txn", "records", "grants", "refusals", "keys", "complete")


@pytest.fixture
def evidence() -> Evidence:
    return copy.deepcopy(GOOD)


def verified(evidence: Any, keys: KeySet = TRUSTED) -> Verdict:
    return verify_evidence(evidence, keys, frozenset())


def bad(evidence: Any, keys: KeySet = TRUSTED) -> tuple[str, str]:
    """The first check that failed, and where."""
    verdict = verified(evidence, keys)
    assert not verdict.verified
    first = next(check for check in verdict.checks if not check.ok)
    return first.check, first.where


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value that is no container."""
    if isinstance(value, dict | list) and value:
        for key, below in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(below, (*path, key))
    else:
        yield path


def change(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, str):
        return value[:-1] + ("0" if value[-1:] != "0" else "1")
    return {"x": 1} if isinstance(value, dict) else ["x"] if isinstance(value, list) else "x"


def put(root: Any, path: tuple[Any, ...], make: Callable[[Any], Any]) -> None:
    for key in path[:-1]:
        root = root[key]
    root[path[-1]] = make(root[path[-1]])


def test_untouched_evidence_verifies(evidence: Evidence) -> None:
    verdict = verified(evidence)
    assert verdict.verified
    assert [check.check for check in verdict.checks] == [
        "form", "records", "keys", "grants", "links", "signed", "approvals", "complete",
        "checkpoint", "proof", "witnesses", "payloads", "personal", "rules", "refusals",
    ]  # fmt: skip


@pytest.mark.parametrize("path", list(leaves(GOOD["records"])), ids=lambda path: ".".join(map(str, path)))
def test_any_changed_value_of_a_record_is_found_at_that_record(evidence: Evidence, path: tuple[Any, ...]) -> None:
    put(evidence["records"], path, change)
    assert bad(evidence)[0] == "records"
    assert bad(evidence)[1].startswith(f"record {path[0]}:")


@pytest.mark.parametrize("path", list(leaves(GOOD["refusals"])), ids=lambda path: ".".join(map(str, path)))
def test_any_changed_value_of_a_refusal_is_found_at_that_refusal(evidence: Evidence, path: tuple[Any, ...]) -> None:
    put(evidence["refusals"], path, change)
    assert bad(evidence) == ("refusals", f"refusal {path[0]}: it is not as it was sealed, or of another txn")


@pytest.mark.parametrize("index", range(len(GOOD["records"])))
def test_a_dropped_record_is_found_where_it_is_missing(evidence: Evidence, index: int) -> None:
    del evidence["records"][index]
    check, where = bad(evidence)
    if index < len(GOOD["records"]) - 1:
        assert (check, where.split(":")[0]) == ("records", f"record {index}")
    else:
        assert check == "complete"


@pytest.mark.parametrize("index", range(len(GOOD["records"]) - 1))
def test_swapped_records_are_found_at_the_first(evidence: Evidence, index: int) -> None:
    records = evidence["records"]
    records[index], records[index + 1] = records[index + 1], records[index]
    assert bad(evidence)[1].startswith(f"record {index}:")


@pytest.mark.parametrize("index", range(len(GOOD["records"])))
def test_a_record_that_stands_there_twice_is_found_at_the_second(evidence: Evidence, index: int) -> None:
    evidence["records"].insert(index, evidence["records"][index])
    assert bad(evidence)[1].startswith(f"record {index + 1}:")


@pytest.mark.parametrize("index", range(1, len(GOOD["records"])))
def test_a_record_that_was_put_in_is_found_where_it_stands(evidence: Evidence, index: int) -> None:
    """Made up as a broker would have written it there, the hash it has included."""
    records = evidence["records"]
    made = {**records[index], "by": "somebody", "prev": records[index - 1]["hash"]}
    records.insert(index, {**made, "hash": hash_of(made)})
    assert bad(evidence)[0] == "records"
    assert bad(evidence)[1].startswith((f"record {index}:", f"record {index + 1}:"))


def test_a_field_nobody_knows_is_found_although_it_was_sealed(evidence: Evidence) -> None:
    evidence["records"][1]["note"] = "added"
    resealed(evidence["records"], 1)
    assert bad(evidence)[1].startswith("record 1:")


@pytest.mark.parametrize("index", range(6))
def test_a_record_changed_and_sealed_anew_is_betrayed_by_the_grants(evidence: Evidence, index: int) -> None:
    """Every record up to the last one that a grant names."""
    evidence["records"][index]["by"] = "somebody"
    resealed(evidence["records"], index)
    assert bad(evidence)[0] == "grants"


def test_renewed_and_resumed_grants_verify_under_the_one_that_counted_then() -> None:
    verdict = verified(long_case().evidence())
    assert verdict.verified, verdict
    assert [check.where for check in verdict.checks if check.check == "links"] == [
        "6 delegations, none wider than its parent"
    ]


def test_a_renewed_grant_that_is_missing_is_found() -> None:
    evidence = long_case().evidence()
    del evidence["grants"][2]
    assert bad(evidence) == ("grants", "the grant of record 2 is missing")


@pytest.mark.parametrize("changes", [{"exp": 1_800_000_121}, {"budget": LARGE}, {"aud": "critic"}, {"max_depth": 7}])
def test_a_renewed_grant_says_what_the_records_of_its_hop_say(changes: dict[str, Any]) -> None:
    case = long_case()
    claims = msgspec.structs.replace(case.claims(2, ROOT), par=parse(case.grants[ROOT]).digest)
    evidence = case.evidence()
    evidence["grants"][2] = mint(msgspec.structs.replace(claims, **changes), KEY)
    assert bad(evidence)[0] == "grants"


def test_a_grant_under_one_from_before_a_resumption_is_no_link() -> None:
    case = long_case()
    index = next(n for n, record in enumerate(case.story.records) if record["hop"] == SECOND)
    old = case.tokens[f"{TXN}.{CHILD}.2"]
    claims = msgspec.structs.replace(case.claims(index, CHILD), par=parse(old).digest)
    case.tokens[f"{TXN}.{SECOND}.1"] = mint(claims, KEY)
    assert bad(case.evidence()) == ("links", f"record {index}: par is not the digest of the parent (bundle.par)")


def test_a_renewed_grant_is_not_wider_than_the_one_above_it() -> None:
    case = Case()
    case.open(CHILD, ROOT, "agent/researcher/brief", Budget(5000, 500, 6), exp=1_800_000_060)
    case.open(GRANDCHILD, CHILD, "mcp/git/git_log", Budget(1000, 100, 2), exp=1_800_000_030)
    first = case.grants[CHILD]
    case.renew(CHILD, ROOT, 1_800_000_120)
    case.renew(GRANDCHILD, CHILD, 1_800_000_100)
    # Under the grant before the newest, which expires earlier: exp would have grown along the bundle.
    index = len(case.story.records) - 1
    claims = msgspec.structs.replace(case.claims(index, CHILD), par=parse(first).digest)
    case.tokens[claims.jti] = mint(claims, KEY)
    assert bad(case.evidence()) == ("links", f"record {index}: exp is later than the parent's (bundle.exp)")


def test_a_record_after_the_last_grant_is_bound_by_the_checkpoint(evidence: Evidence) -> None:
    evidence["records"][6]["by"] = "somebody"
    resealed(evidence["records"], 6)
    verdict = verified(evidence)
    assert [check.check for check in verdict.checks if not check.ok] == ["proof"]
    said = next(check.where for check in verdict.checks if check.check == "signed")
    assert said == "records 0 to 5 are bound by grants; the 2 after it by the checkpoint"


def test_accounts_that_do_not_add_up_are_found_although_sealed_anew(evidence: Evidence) -> None:
    evidence["records"][7]["spent"]["calls"] += 1
    resealed(evidence["records"], 7)
    assert bad(evidence)[0] == "records"
    assert bad(evidence)[1].startswith("record 7:")


@pytest.mark.parametrize(("index", "record"), [(0, 0), (1, 1), (2, 2), (3, 5)])
def test_a_missing_grant_is_named_by_its_record(evidence: Evidence, index: int, record: int) -> None:
    del evidence["grants"][index]
    assert bad(evidence) == ("grants", f"the grant of record {record} is missing")


def test_a_grant_that_no_record_names_is_found(evidence: Evidence) -> None:
    stranger = closed_case().claims(1, ROOT)
    other = f"{TXN}.{hop_id(77)}.1"
    evidence["grants"].append(mint(msgspec.structs.replace(stranger, jti=other), KEY))
    assert bad(evidence) == ("grants", f"grant 4: no record names {other}, or it is there twice")


def test_a_grant_that_is_there_twice_is_found(evidence: Evidence) -> None:
    evidence["grants"].append(evidence["grants"][1])
    assert bad(evidence)[1].startswith("grant 4: no record names")


def test_a_grant_in_anothers_place_is_found(evidence: Evidence) -> None:
    evidence["grants"][1] = evidence["grants"][2]
    assert bad(evidence)[1].startswith("grant 2: no record names")


def test_a_grant_signed_by_another_key_is_found(evidence: Evidence) -> None:
    evidence["grants"][1] = mint(closed_case().claims(1, ROOT), OTHER)
    assert bad(evidence)[0] == "grants"
    assert bad(evidence)[1].startswith("grant 1:")


def test_grants_all_signed_by_another_key_do_not_verify_whatever_the_file_says_of_keys() -> None:
    forged = closed_case(OTHER).evidence()
    assert verified(forged, KeySet([OTHER.public, SEAL.public])).verified
    assert bad(forged)[0] == "keys"
    forged["keys"] = GOOD["keys"]
    assert bad(forged)[0] == "grants"


@pytest.mark.parametrize(
    "keys", [{"keys": [OTHER.public.to_jwk()]}, {"keys": [{**KEY.public.to_jwk(), "x": "A" * 43}]}, {}]
)
def test_keys_in_the_file_that_are_not_the_published_ones_are_found(evidence: Evidence, keys: Any) -> None:
    evidence["keys"] = keys
    assert bad(evidence)[0] == "keys"


def test_keys_that_are_not_this_brokers_verify_nothing(evidence: Evidence) -> None:
    verdict = verified(evidence, KeySet([OTHER.public]))
    assert {check.check for check in verdict.checks if not check.ok} >= {"keys", "grants"}
    assert not verified(evidence, KeySet()).verified


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"aud": "critic"}, "aud"),
        ({"sub": "bob"}, "sub"),
        ({"exp": 1_999_999_999}, "exp"),
        ({"budget": Budget(9000, 500, 6)}, "budget"),
        ({"max_depth": 16}, "max_depth"),
        ({"authorization_details": ()}, "authorization_details"),
        ({"rec": "0" * 64}, "rec"),
        ({"tenant": "other"}, "tenant"),
    ],
)
def test_a_grant_the_broker_signed_but_no_record_authorised_is_found(
    evidence: Evidence, change: dict[str, Any], what: str
) -> None:
    """As from a broker whose ledger says one thing and whose grants another."""
    evidence["grants"][0] = mint(msgspec.structs.replace(closed_case().claims(0, None), **change), KEY)
    assert bad(evidence) == ("grants", f"grant 0: its {what} is not that of record 0")


def test_a_grant_wider_than_its_parent_is_found_at_its_record() -> None:
    """The broker signed it and its record names it: only the comparison with the parent shows it."""
    case = Case()
    case.open(CHILD, ROOT, "agent/researcher/brief", Budget(5000, 500, 6))
    case.open(GRANDCHILD, CHILD, "mcp/git/git_log")
    claims = case.claims(2, CHILD)
    case.tokens[claims.jti] = mint(
        msgspec.structs.replace(claims, labels=("*",), par=case.claims(0, None).rec[:43]), KEY
    )
    assert bad(case.evidence()) == ("links", "record 2: par is not the digest of the parent (bundle.par)")


def test_a_cycle_verifies_only_where_the_verifier_permits_the_pair() -> None:
    case = Case()
    case.open(CHILD, ROOT, "agent/researcher/brief", Budget(5000, 500, 6))
    case.open(GRANDCHILD, CHILD, "agent/planner/plan")
    assert bad(case.evidence())[0] == "links"
    assert verify_evidence(case.evidence(), TRUSTED, frozenset({("researcher", "planner")})).verified


def test_an_open_txn_says_that_more_may_have_followed() -> None:
    case = Case()
    case.open(SECOND, ROOT, "agent/critic/review")
    verdict = verified(case.evidence())
    assert verdict.verified
    assert any(check.where.startswith("no completeness proof: still open after record 1") for check in verdict.checks)


@pytest.mark.parametrize("closed", [True, False])
def test_what_the_file_says_of_being_complete_is_checked(closed: bool) -> None:
    found = closed_case().evidence() if closed else Case().evidence()
    found["complete"] = not closed
    assert bad(found) == ("complete", "the file says otherwise than its last record")


def test_a_closing_cut_off_cannot_be_passed_off_as_complete(evidence: Evidence) -> None:
    del evidence["records"][-1]
    assert bad(evidence)[0] == "complete"


def test_evidence_of_another_txn_is_found(evidence: Evidence) -> None:
    evidence["txn"] = "b" * 32
    assert bad(evidence)[1].startswith("record 0: it is of txn")


def test_a_refusal_of_another_txn_is_found(evidence: Evidence) -> None:
    refusal = evidence["refusals"][1]
    refusal["txn"] = "b" * 32
    refusal["hash"] = hash_of(refusal)
    reproved(evidence)
    assert bad(evidence)[1].startswith("refusal 1:")


@pytest.mark.parametrize("name", CONTENT)
@pytest.mark.parametrize(
    "value", [None, 1.5, "x", {}, [[]], [None], [1], [{}], [{"kind": "hop.opened", "jti": []}], True]
)
def test_no_shape_of_a_file_breaks_the_verifier(evidence: Evidence, name: str, value: Any) -> None:
    evidence[name] = value
    assert verified(evidence).verified == (json.dumps(evidence) == json.dumps(GOOD))
    del evidence[name]
    assert not verified(evidence).verified


@pytest.mark.parametrize("resource", ["x", "", "mcp", "mcp/git", [], None, {"a": 1}])
def test_no_resource_of_a_sealed_record_breaks_the_verifier(evidence: Evidence, resource: Any) -> None:
    evidence["records"][1]["resource"] = resource
    resealed(evidence["records"], 1)
    assert bad(evidence)[1].startswith("record 1:")


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"v":1,"v":1}', b"null", b"\xff", b'{"v":NaN}', b"[" * 100_000])
def test_what_is_no_evidence_is_refused_or_does_not_verify(data: bytes) -> None:
    try:
        found = read(data)
    except Refusal:
        return
    assert not verified(found).verified


FILE = json.dumps(GOOD, indent=1).encode()


@settings(max_examples=800, deadline=None)
@given(st.integers(0, len(FILE) - 1), st.integers(1, 255))
def test_no_flipped_byte_of_the_file_verifies_with_another_content(position: int, mask: int) -> None:
    data = bytearray(FILE)
    data[position] ^= mask
    try:
        found = read(bytes(data))
    except Refusal:
        return
    if verified(found).verified:
        # White space, or something the verifier says it does not look at: members of a JWK that RFC 7517 has ignored.
        assert {name: found.get(name) for name in CONTENT if name != "keys"} == {
            name: GOOD[name] for name in CONTENT if name != "keys"
        }
        assert KeySet.from_jwks(found["keys"]).to_jwks() == GOOD["keys"]


APPROVED = "c" * 16


def approved_case(**said: Any) -> Evidence:
    """A call that somebody approved; ``said`` are other claims than those of the record."""
    case = Case()
    case.approve(APPROVED, ROOT, "agent/researcher/brief", said)
    case.open(CHILD, ROOT, "agent/researcher/brief", approval=APPROVED)
    return case.evidence()


def test_an_approval_is_verified_offline() -> None:
    verdict = verified(approved_case())
    assert verdict.verified, verdict
    said = next(check.where for check in verdict.checks if check.check == "approvals")
    assert said == "1 asked for, 1 signed decisions, 1 used, each once"


@pytest.mark.parametrize(
    "said",
    [
        {"verdict": "deny"}, {"sub": "kim"}, {"who": "local:kim"}, {"auth": "x"}, {"reason": "other"}, {"exp": 1},
        {"args_digest": "0" * 64}, {"resource": "agent/researcher/other"}, {"chain": ("bob",)}, {"revision": "x"},
        {"request": "0" * 64}, {"id": "d" * 16}, {"txn": "b" * 32}, {"tenant": "other"}, {"roles": ("x",)},
    ],
)  # fmt: skip
def test_a_decision_that_was_changed_is_found(said: dict[str, Any]) -> None:
    check, where = bad(approved_case(**said))
    assert (check, next(iter(said)) in where, where.startswith("record 2")) == ("approvals", True, True)


def test_a_decision_that_nobody_trusted_signed_is_found() -> None:
    case = Case()
    case.approve(APPROVED, ROOT, "agent/researcher/brief")
    evidence = case.evidence()
    decided = evidence["records"][2]
    decided["token"] = approval.sign(approval.verify(decided["token"], TRUSTED), OTHER)
    resealed(evidence["records"], 2)
    check, where = bad(evidence)
    assert (check, "not in the key set" in where) == ("approvals", True)
