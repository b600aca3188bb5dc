"""What a log proves of one chain: every way to prove something else is found."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from remit_broker.core import notes
from remit_broker.core.evidence import verify_evidence
from remit_broker.core.notes import LEDGER, REFUSALS, Witness
from remit_broker.core.policy_texts import revision_of
from remit_schemas.keys import KeySet, SigningKey
from tests.support.evidence import (
    KEY,
    OTHER,
    SEAL,
    TRUSTED,
    Case,
    Log,
    closed_case,
    long_case,
    proofs,
    reproved,
    resealed,
)

Evidence = dict[str, Any]
CASE = closed_case()
GOOD: Evidence = CASE.evidence()
FORGER = SigningKey.from_seed(b"\x04" * 32, "checkpoint")
OUTSIDE = SigningKey.from_seed(b"\x05" * 32, "witness")
WITNESS = Witness("witness.example/w1", OUTSIDE.public.raw)


@pytest.fixture
def evidence() -> Evidence:
    return copy.deepcopy(GOOD)


def failed(evidence: Evidence, keys: KeySet = TRUSTED, witnesses: tuple[Witness, ...] = ()) -> dict[str, str]:
    """The checks that failed, and where."""
    verdict = verify_evidence(evidence, keys, frozenset(), witnesses)
    return {check.check: check.where for check in verdict.checks if not check.ok}


def said(evidence: Evidence, check: str, witnesses: tuple[Witness, ...] = ()) -> str:
    verdict = verify_evidence(evidence, TRUSTED, frozenset(), witnesses)
    assert verdict.verified
    return next(each.where for each in verdict.checks if each.check == check)


def test_a_closed_chain_is_proved_to_be_whole(evidence: Evidence) -> None:
    last = len(evidence["records"]) - 1
    assert said(evidence, "proof") == f"record {last} is number {last + 1} of the log, and covers all before it"
    assert (
        said(evidence, "complete") == f"closed by record {last}: nothing can follow, and nothing before it is missing"
    )
    assert said(evidence, "witnesses") == "nobody outside has seen it"


PROOFS = ["checkpoint", "proof", "refusal_checkpoint", "refusal_proofs", "cosignatures"]
ODD: list[Any] = [None, "", 7, {}, [7], {"index": -1, "hashes": []}, {"index": 1, "hashes": ["AA"] * 99}]


@pytest.mark.parametrize("name", PROOFS)
@pytest.mark.parametrize("put", ODD)
def test_no_proof_is_of_another_form(evidence: Evidence, name: str, put: Any) -> None:
    evidence[name] = put
    assert failed(evidence)


@pytest.mark.parametrize("name", PROOFS)
def test_no_proof_is_left_out(evidence: Evidence, name: str) -> None:
    del evidence[name]
    assert failed(evidence)


@pytest.mark.parametrize("line", range(6))
def test_any_changed_line_of_a_checkpoint_is_found(evidence: Evidence, line: int) -> None:
    lines = evidence["checkpoint"].split("\n")
    lines[line] = lines[line][:-3] + "Z" + lines[line][-2:] if len(lines[line]) > 3 else lines[line] + "1"
    evidence["checkpoint"] = "\n".join(lines)
    assert "checkpoint" in failed(evidence)


def test_a_checkpoint_signed_by_a_key_for_grants_is_found(evidence: Evidence) -> None:
    """Also where somebody publishes that key as one for checkpoints in the file itself."""
    as_sealer = SigningKey.from_seed(b"\x01" * 32, "checkpoint")
    assert as_sealer.public.raw == KEY.public.raw
    reproved(evidence, as_sealer)
    assert failed(evidence) == {
        "checkpoint": "no trusted key for checkpoints signed it",
        "refusals": "their checkpoint: no trusted key for checkpoints signed it",
    }
    with pytest.raises(ValueError, match="signs no checkpoint"):
        notes.sign(Log(LEDGER, evidence["records"]).checkpoint, KEY)


def test_a_rebuilt_log_under_another_key_is_found_whatever_the_file_says_of_keys(evidence: Evidence) -> None:
    evidence["records"][6]["by"] = "somebody"
    resealed(evidence["records"], 6)
    reproved(evidence, FORGER)
    assert "checkpoint" in failed(evidence)
    evidence["keys"] = KeySet([KEY.public, FORGER.public]).to_jwks()
    assert {"checkpoint", "keys"} <= set(failed(evidence))


def test_a_checkpoint_of_the_refusals_is_none_of_the_ledger(evidence: Evidence) -> None:
    """A record that was smuggled into the other log proves nothing in this one."""
    records = evidence["records"]
    elsewhere = Log(f"{REFUSALS}1", records)
    evidence["checkpoint"] = elsewhere.note
    evidence["proof"] = elsewhere.place(len(records) - 1).told()
    assert failed(evidence) == {"checkpoint": f"it is of the log {elsewhere.checkpoint.origin}"}


def test_the_proof_of_another_record_proves_nothing(evidence: Evidence) -> None:
    log = Log(LEDGER, evidence["records"])
    evidence["checkpoint"] = log.note
    evidence["proof"] = log.place(0).told()
    assert list(failed(evidence)) == ["proof"]


def test_the_end_of_a_chain_cannot_be_cut_off_with_the_proof_it_had(evidence: Evidence) -> None:
    del evidence["records"][-1]
    evidence["complete"] = False
    assert list(failed(evidence)) == ["proof"]


def test_the_proof_of_another_chain_proves_nothing(evidence: Evidence) -> None:
    other = long_case().evidence()
    for name in ("checkpoint", "proof", "refusal_checkpoint", "refusal_proofs"):
        mixed = {**evidence, name: other[name]}
        assert name == "refusal_checkpoint" or name == "refusal_proofs" or "proof" in failed(mixed)
    assert "proof" in failed({**evidence, **{name: other[name] for name in ("checkpoint", "proof")}})
    assert failed({**evidence, "records": other["records"], "grants": other["grants"]})


def test_an_old_checkpoint_does_not_cover_what_came_after_it(evidence: Evidence) -> None:
    """Replayed: signed by the right key, for the log as it was before this chain was closed."""
    records = evidence["records"]
    before = Log(LEDGER, records[:-2])
    evidence["checkpoint"] = before.note
    assert list(failed(evidence)) == ["proof"]


def test_an_open_chain_has_no_completeness_proof() -> None:
    said_of = said(Case().evidence(), "complete")
    assert said_of == "no completeness proof: still open after record 0, more may have followed"


@pytest.mark.parametrize(
    "change",
    [
        lambda it: it["refusals"].pop(),
        lambda it: it["refusal_proofs"].pop(),
        lambda it: it["refusals"].reverse(),
        lambda it: (it["refusals"].append(it["refusals"][0]), it["refusal_proofs"].append(it["refusal_proofs"][0])),
        lambda it: it.update(refusal_checkpoint=it["checkpoint"]),
    ],
)
def test_refusals_are_those_of_their_log(evidence: Evidence, change: Callable[[Evidence], Any]) -> None:
    change(evidence)
    assert list(failed(evidence)) == ["refusals"]


def test_a_refusal_that_was_made_up_is_not_in_the_log(evidence: Evidence) -> None:
    from remit_schemas.records import hash_of

    made_up = {**evidence["refusals"][0], "message": "something else"}
    evidence["refusals"][0] = {**made_up, "hash": hash_of(made_up)}
    assert failed(evidence) == {"refusals": "refusal 0: it is not under the checkpoint"}


def test_what_a_witness_saw_is_said_and_what_none_saw_is_missed(evidence: Evidence) -> None:
    note = notes.parse(evidence["checkpoint"])
    seen = notes.cosign(note.checkpoint, WITNESS.name, OUTSIDE, 1_800_000_000)
    assert failed(evidence, witnesses=(WITNESS,)) == {
        "witnesses": "the witness witness.example/w1 did not sign this checkpoint"
    }
    evidence["cosignatures"] = [seen.line]
    assert said(evidence, "witnesses", (WITNESS,)) == "witness.example/w1 saw it at 1800000000 (Unix time)"
    assert said(evidence, "witnesses") == "1 of witnesses that nobody named: not looked at"
    forged = notes.cosign(note.checkpoint, WITNESS.name, OTHER, 1_800_000_000)
    moved = notes.cosign(Log(LEDGER, evidence["records"][:-1]).checkpoint, WITNESS.name, OUTSIDE, 1_800_000_000)
    for line in (forged.line, moved.line):
        assert "witnesses" in failed({**evidence, "cosignatures": [line]}, witnesses=(WITNESS,))


def test_evidence_from_before_a_rotation_verifies_with_the_keys_of_after_it(evidence: Evidence) -> None:
    history = KeySet([KEY.public, SEAL.public, OTHER.public, FORGER.public])
    assert failed(evidence, history) == {}
    assert failed({**evidence, "keys": json.loads(json.dumps(history.to_jwks()))}, history) == {}
    fresh = closed_case(OTHER).evidence()
    fresh.update(json.loads(json.dumps(proofs(fresh["records"], fresh["refusals"], FORGER).told())))
    assert failed({**fresh, "keys": history.to_jwks()}, history) == {}


def test_the_texts_of_rules_are_those_of_their_revision(evidence: Evidence) -> None:
    texts = {"b.cedar": "permit(principal, action, resource);", "a.cedar": "// nothing"}
    revision = revision_of(texts)
    assert said({**evidence, "policies": {revision: texts}}, "rules") == "1 policy sets as they were"
    odd: list[Any] = [
        {revision: {**texts, "a.cedar": "// x"}},
        {revision: {}},
        {"rev": texts},
        [],
        {revision: {"a": 7}},
    ]
    for wrong in odd:
        assert list(failed({**evidence, "policies": wrong})) == ["rules"]
