"""Evidence of one chain: one file that somebody who trusts nobody here can check offline with the published keys.

What it proves: every record is as it was sealed and in its place; every grant was signed by a published key, names the
record that authorised it, and is no wider than the grant above it; the accounts add up; every decision
about an approval was signed by a published key, and is about exactly the call that used it.

What binds it all. A grant names the hash of its record, and a record the one before it. The last record is proved to be in the log of
all records, whose checkpoint is signed with a key of its own; after ``txn.closed`` nothing can follow, so that nothing was left out. A
chain that is still open has no such proof, and says so. Refusals are proved to be in a log of their own, not to be all.

What it does not prove: that the operator, who holds the keys, did not make the whole chain up, or leave another one out. A checkpoint
that somebody outside has signed or kept (:mod:`remit_broker.core.sealing`) bounds when that could have been.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from remit_broker.core import sealing
from remit_broker.core.fold import Corrupt, Fold, fold_shown
from remit_broker.core.notes import Witness
from remit_broker.core.policy_texts import revision_of
from remit_broker.core.sealing import LEDGER, REFUSALS, Proofs, Unproved
from remit_broker.core.tree import GRANTS
from remit_broker.core.vault import commitments, opens
from remit_broker.core.withholding import HIDDEN, Shown, shown
from remit_schemas.approval import verify as verify_decision
from remit_schemas.bundle import verify_link
from remit_schemas.canonical import loads
from remit_schemas.errors import Refusal
from remit_schemas.grant import Grant, parse, verify
from remit_schemas.keys import KeySet
from remit_schemas.records import MAX_RECORD, HopRefused, hash_of
from remit_schemas.scope import Detail, Scope

VERSION: Final = 1
MAX_EVIDENCE: Final = 256 * 1024 * 1024


class Check(msgspec.Struct, frozen=True):
    """One thing that was checked. ``where`` is the first bad place, or how much was checked where all is well."""

    check: str
    ok: bool
    where: str


class Verdict(msgspec.Struct, frozen=True):
    """What a verification found; ``verified`` only if every check is well."""

    verified: bool
    checks: tuple[Check, ...]


def export(
    entries: Iterable[Mapping[str, Any]], refusals: list[dict[str, Any]], jwks: Mapping[str, Any], proofs: Proofs
) -> dict[str, Any]:
    """The evidence of one txn: its records in order, every grant that a record names, what was refused, and the proofs of all that."""
    entries = list(entries)
    first = entries[0]["record"]
    return {
        "v": VERSION,
        "txn": first["txn"],
        "records": [entry["record"] for entry in entries],
        "grants": [entry["grant"] for entry in entries if entry["grant"] is not None],
        # INVARIANT: what is for operators only leaves with no evidence (test_no_private_cause_leaves_with_the_evidence).
        "refusals": [{**record, "cause": ""} for record in refusals],
        "keys": jwks,
        "complete": entries[-1]["record"]["kind"] == "txn.closed",
        **proofs.told(),
    }


def revisions(evidence: Mapping[str, Any]) -> list[str]:
    """The sets of policies that its decisions name."""
    decisions = [record.get("decision") for record in [*evidence["records"], *evidence["refusals"]]]
    return list(dict.fromkeys(decision["revision"] for decision in decisions if decision))


def read(data: bytes) -> dict[str, Any]:
    """An evidence file. Refuses MALFORMED or TOO_LARGE."""
    value = loads(data, max_bytes=MAX_EVIDENCE)
    return value if isinstance(value, dict) else {}


def verify_evidence(
    evidence: Mapping[str, Any],
    keys: KeySet,
    allowed_cycles: frozenset[tuple[str, str]] = frozenset(),
    witnesses: Iterable[Witness] = (),
) -> Verdict:
    """Check everything, with no trust in anything but ``keys`` and ``witnesses``. Never raises for what a file may contain.

    Where the form or the records do not hold, what rests on them is not looked at.
    """
    checks = [_form(evidence)]
    if checks[0].ok:
        accounts, fold, seen = _records(evidence)
        checks += [accounts, _keys(evidence["keys"], keys)]
        if fold is not None and seen is not None:
            records = seen.records
            if seen.user:
                grants, found = _grants(evidence["grants"], records, keys)
                checks += [grants, _links(found, records, allowed_cycles), _signed(found, records)]
            else:
                checks += _without_grants(evidence["grants"], records)
            checks += [_approvals(records, keys), _complete(evidence["complete"], fold)]
            checks += _log(evidence, records, keys, list(witnesses))
            checks += [_payloads(evidence.get("payloads"), records), _personal(evidence, seen)]
        checks += [_rules(evidence.get("policies", {})), _refusals(evidence, keys)]
    return Verdict(all(check.ok for check in checks), tuple(checks))


_FORM: Final[dict[str, type]] = {
    "txn": str, "records": list, "grants": list, "refusals": list, "keys": dict, "complete": bool,
}  # fmt: skip


def _form(evidence: Mapping[str, Any]) -> Check:
    if type(evidence.get("v")) is not int or evidence["v"] != VERSION:
        return Check("form", False, f"v is {evidence.get('v')!r}, this verifier knows {VERSION}")
    for name, kind in _FORM.items():
        if not isinstance(evidence.get(name), kind):
            return Check("form", False, f"{name} is missing or not a {kind.__name__}")
    if not all(isinstance(record, dict) for record in [*evidence["records"], *evidence["refusals"]]):
        return Check("form", False, "a record is not an object")
    return Check("form", True, f"version {VERSION}")


def _records(evidence: Mapping[str, Any]) -> tuple[Check, Fold | None, Shown | None]:
    """Hashes, order, gaps, and the accounts: the fold accepts nothing that a broker would not have appended.

    INVARIANT: a record of which something is withheld is bound by the next one
    (test_what_is_shown_of_a_veiled_record_cannot_be_changed).
    """
    records, txn = evidence["records"], evidence["txn"]
    try:
        seen = shown(evidence)
        fold = fold_shown((raw, seen.veils.get(number)) for number, raw in enumerate(seen.records))
    except Corrupt as bad:
        return Check("records", False, f"record {bad.where.rpartition('#')[2]}: {bad.why}"), None, None
    except ValueError as bad:
        return Check("records", False, str(bad)), None, None
    if fold.txn != txn:
        return Check("records", False, f"record 0: it is of txn {fold.txn}, the file says {txn!r}"), None, None
    veiled = f", {len(seen.veils)} of them veiled" if seen.veils else ""
    return Check("records", True, f"{len(records)} records, hash chain and accounts{veiled}"), fold, seen


def _personal(evidence: Mapping[str, Any], seen: Shown) -> Check:
    """What is withheld of people, and that what is shown in its place is what the records commit to."""
    if "personal" not in evidence:
        return Check("personal", True, "nothing is withheld")
    closed = ", ".join(seen.withheld[:12]) + (f" and {len(seen.withheld) - 12} more" if len(seen.withheld) > 12 else "")
    return Check(
        "personal",
        True,
        f"{len(seen.withheld)} withheld ({closed or 'none'}); {seen.disclosed} disclosed, as the records commit to them",
    )


def _without_grants(tokens: list[Any], records: list[dict[str, Any]]) -> list[Check]:
    """Where it is withheld whose task it is, there are no grants: what they say of scopes stands in the records too."""
    if tokens:
        return [Check("grants", False, "grants name the user, who is withheld")]
    scopes: dict[str, Scope] = {}
    links = 0
    for raw in records:
        if raw["kind"] not in ("txn.opened", "hop.opened", "hop.resumed"):
            continue
        try:
            scope = Scope.of(msgspec.convert(raw["scope"], tuple[Detail, ...]))
            above = scopes.get(raw["parent"]) if raw["kind"] == "hop.opened" else scopes.get(raw["hop"])
            wider = raw["seq"] > 0 and (above is None or not scope <= above)
        except (Refusal, ValueError) as bad:
            return [Check("links", False, f"record {raw['seq']}: its scope is none: {bad}")]
        if wider:
            return [Check("links", False, f"record {raw['seq']}: its scope is wider than the one above it")]
        scopes[raw["hop"]], links = scope, links + (raw["seq"] > 0)
    return [
        Check("grants", True, "withheld, since each names the user"),
        Check("links", True, f"{links} delegations by their records, none wider than the one above it"),
        Check("signed", True, "no record is bound by a grant: all of them are by the checkpoint"),
    ]


def _keys(claimed: dict[str, Any], trusted: KeySet) -> Check:
    """The keys in the file are a claim that nothing rests on; one that nobody published is named all the same."""
    try:
        said = KeySet.from_jwks(claimed)
    except Refusal as bad:
        return Check("keys", False, f"the keys in the file: {bad.body.message}")
    for key in said:
        if trusted.get(key.kid) != key:
            return Check("keys", False, f"the key {key.kid} in the file is not among the trusted ones")
    return Check("keys", True, f"{len(said)} of the {len(trusted)} trusted keys named, and no other")


def _grants(tokens: list[Any], records: list[dict[str, Any]], keys: KeySet) -> tuple[Check, dict[str, Grant]]:
    """Every record that mints a grant has it here, signed, and each names that record's hash."""
    minting = _minting(records)
    found: dict[str, Grant] = {}
    issuer = ""
    for index, token in enumerate(tokens):
        try:
            unverified = parse(token if isinstance(token, str) else "")
            claims = unverified.claims
            issuer = issuer or claims.iss
            grant = verify(unverified, keys, issuer=issuer, audience=claims.aud, now=claims.iat)
        except Refusal as bad:
            return Check("grants", False, f"grant {index}: {bad.body.message} ({bad.body.rule})"), found
        jti = str(grant.jti)
        record = minting.pop(jti, None)
        if record is None:
            return Check("grants", False, f"grant {index}: no record names {jti}, or it is there twice"), found
        if mismatch := _mismatch(grant, record):
            return Check("grants", False, f"grant {index}: its {mismatch} is not that of record {record['seq']}"), found
        found[jti] = grant
    if minting:
        return Check("grants", False, f"the grant of record {next(iter(minting.values()))['seq']} is missing"), found
    return Check("grants", True, f"{len(found)} grants, signatures and the records they name"), found


MINTS: Final = ("txn.opened", "hop.opened", "grant.renewed", "hop.resumed")
"""The kinds of record that authorise a grant."""


def _minting(records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By the id of each grant, the record that authorised it with all that the records before it say of its hop."""
    minting: dict[str, dict[str, Any]] = {}
    hops: dict[str, dict[str, Any]] = {}
    for raw in records:
        if raw["kind"] in MINTS:
            # A renewal says nothing but the new times, a resumption nothing of whom and where: that stays as it was.
            hops[raw["hop"]] = minting[raw["jti"]] = {**hops.get(raw["hop"], {}), **raw}
    return minting


def _mismatch(grant: Grant, record: dict[str, Any]) -> str:
    """The first claim that is not what the record says, or nothing."""
    claims = grant.claims
    said = {
        "rec": (claims.rec, record["hash"]),
        "tenant": (claims.tenant, record["tenant"]),
        "sub": (claims.sub, record.get("user", claims.sub)),
        "exp": (claims.exp, record["exp"]),
        "budget": (msgspec.to_builtins(claims.budget), record["budget"]),
        "max_depth": (claims.max_depth, record["max_depth"]),
        "depth": (claims.depth, record.get("depth", 0)),
        "authorization_details": (claims.authorization_details, msgspec.convert(record["scope"], tuple[Detail, ...])),
        "aud": (claims.aud, record["agent"] if "agent" in record else record["resource"].split("/")[1]),
    }
    return next((name for name, (one, other) in said.items() if one != other), "")


def _links(found: dict[str, Grant], records: list[dict[str, Any]], allowed: frozenset[tuple[str, str]]) -> Check:
    """Each grant is no wider than the one it was delegated from, which is one of those above it that counted then."""
    above: dict[str, str] = {}
    counting: dict[str, tuple[str, ...]] = {}
    links = 0
    for raw in records:
        if raw["kind"] not in MINTS:
            continue
        hop, jti = raw["hop"], raw["jti"]
        if raw["kind"] == "hop.opened":
            above[hop] = raw["parent"]
        if raw["kind"] != "txn.opened":
            child = found.get(jti)
            # INVARIANT: a grant is linked to one that was of use when it was minted
            # (test_a_grant_under_one_from_before_a_resumption_is_no_link).
            near = [grant for name in counting.get(above[hop], ()) if (grant := found.get(name)) is not None]
            if child is None or not near:
                return Check("links", False, f"record {raw['seq']}: the grant, or the one above it, is missing")
            parent = next((grant for grant in near if grant.digest == child.claims.par), near[-1])
            try:
                verify_link(parent, child, allowed)
            except Refusal as bad:
                return Check("links", False, f"record {raw['seq']}: {bad.body.message} ({bad.body.rule})")
            links += 1
        before = counting.get(hop, ()) if raw["kind"] == "grant.renewed" else ()
        counting[hop] = (*before, jti)[-GRANTS:]
    return Check("links", True, f"{links} delegations, none wider than its parent")


def _signed(found: Mapping[str, Grant], records: list[dict[str, Any]]) -> Check:
    """How far signatures of grants reach: each names the hash of its record, and that record all before it."""
    last = max((raw["seq"] for raw in records if raw["kind"] in MINTS and raw["jti"] in found), default=-1)
    if last < 0:
        return Check("signed", False, "record 0: no grant stands for it")
    rest = len(records) - 1 - last
    after = f"; the {rest} after it by the checkpoint" if rest else ""
    return Check("signed", True, f"records 0 to {last} are bound by grants{after}")


def _approvals(records: list[dict[str, Any]], keys: KeySet) -> Check:
    """Every decision is signed, and is about the request, the bytes, the chain and the policies that the records say.

    That each was used once, in time, by the call that was approved, is a matter of the records.
    """
    asked: dict[str, dict[str, Any]] = {}
    decided = used = closed = 0
    for raw in records:
        if raw["kind"] == "approval.requested":
            asked[raw["id"]] = raw
        elif raw["kind"] == "approval.decided" and raw["token"] == HIDDEN:
            closed += 1
        elif raw["kind"] == "approval.decided":
            if why := _undecided(raw, asked[raw["id"]], keys):
                return Check("approvals", False, f"record {raw['seq']}: {why}")
            decided += 1
        elif raw.get("approval"):
            used += 1
    kept = f", {closed} more whose signature is withheld" if closed else ""
    return Check("approvals", True, f"{len(asked)} asked for, {decided} signed decisions{kept}, {used} used, each once")


def _undecided(raw: dict[str, Any], asked: dict[str, Any], keys: KeySet) -> str:
    """Why the token of a decision does not stand for its record, or nothing."""
    try:
        decided = verify_decision(raw["token"], keys)
    except Refusal as no:
        return no.body.message
    said = loads(msgspec.json.encode(decided), max_bytes=MAX_RECORD)
    # INVARIANT: what is signed is what is recorded (test_a_decision_that_was_changed_is_found).
    wanted = {
        **{name: asked[name] for name in ("tenant", "txn", "id", "resource", "args_digest", "chain")},
        **{name: raw[name] for name in ("verdict", "who", "auth", "roles", "reason", "exp", "request")},
        "sub": raw["user"], "revision": asked["decision"]["revision"],
    }  # fmt: skip
    wrong = next((name for name, value in wanted.items() if said[name] != value), "")
    return f"the {wrong} of its token is not that of the record" if wrong else ""


def _payloads(told: Any, records: list[dict[str, Any]]) -> Check:
    """Contents in the file are those that the records commit to. Those that were withheld are counted, and hinder nothing."""
    made = sum(len(commitments(record)) for record in records)
    if told is None:
        return Check("payloads", True, f"none disclosed: {made} commitments to what was sent and answered stay closed")
    if not isinstance(told, list):
        return Check("payloads", False, "they are no list")
    opened: set[tuple[int, str]] = set()
    for index, each in enumerate(told):
        try:
            place = opens(each, records)
        except ValueError as bad:
            return Check("payloads", False, f"payload {index}: {bad}")
        if place in opened:
            return Check("payloads", False, f"payload {index}: it is there twice")
        opened.add(place)
    withheld = made - len(opened)
    return Check("payloads", True, f"{len(opened)} disclosed, as the records commit to them; {withheld} withheld")


def _rules(policies: Any) -> Check:
    """The texts of rules are those of the revisions that the records name: a revision is the digest of all texts of its set."""
    try:
        sets = msgspec.convert(policies, dict[str, dict[str, str]])
        wrong = next((name for name, texts in sets.items() if revision_of(texts) != name), None)
    except (ValueError, TypeError, RecursionError):
        return Check("rules", False, "they are not texts by file and revision")
    if wrong is not None:
        return Check("rules", False, f"revision {wrong}: these are not its texts")
    return Check(
        "rules", True, f"{len(sets)} policy sets as they were" if sets else "no texts of policies are in the file"
    )


def _log(
    evidence: Mapping[str, Any], records: list[dict[str, Any]], keys: KeySet, witnesses: list[Witness]
) -> list[Check]:
    """The checkpoint, that the last record is under it, and who outside saw it."""
    try:
        note, checkpoint, kid = sealing.checked(evidence.get("checkpoint"), keys, LEDGER)
    except Unproved as no:
        return [Check("checkpoint", False, str(no))]
    checks = [Check("checkpoint", True, f"{checkpoint.origin} with {checkpoint.size} records, signed by {kid}")]
    last = len(records) - 1
    try:
        # INVARIANT: what is proved is the last record of the file (test_the_proof_of_another_record_proves_nothing).
        index = sealing.included(evidence["records"][-1], evidence.get("proof"), checkpoint)
        checks.append(Check("proof", True, f"record {last} is number {index} of the log, and covers all before it"))
    except Unproved as no:
        checks.append(Check("proof", False, f"record {last}: {no}"))
    try:
        checks.append(Check("witnesses", True, sealing.witnessed(evidence.get("cosignatures"), note.text, witnesses)))
    except Unproved as no:
        checks.append(Check("witnesses", False, str(no)))
    return checks


def _refusals(evidence: Mapping[str, Any], keys: KeySet) -> Check:
    """Each is as it was sealed, of this txn, and in the log of refusals."""
    refusals, txn, proofs = evidence["refusals"], evidence["txn"], evidence.get("refusal_proofs")
    for index, raw in enumerate(refusals):
        try:
            msgspec.convert(raw, HopRefused)
            good = raw.get("hash") == hash_of(raw) and raw["txn"] == txn
        except (ValueError, TypeError, RecursionError):
            good = False
        if not good:
            return Check("refusals", False, f"refusal {index}: it is not as it was sealed, or of another txn")
    if not isinstance(proofs, list) or len(proofs) != len(refusals):
        return Check("refusals", False, "there is not one proof for each refusal")
    if not refusals and "personal" in evidence:
        return Check("refusals", True, "left out, since they name people; how many there were is not proved")
    if not refusals:
        return Check("refusals", True, "none; that there were none is not proved")
    try:
        _, checkpoint, _ = sealing.checked(evidence.get("refusal_checkpoint"), keys, REFUSALS)
    except Unproved as no:
        return Check("refusals", False, f"their checkpoint: {no}")
    seen: set[int] = set()
    for index, (raw, told) in enumerate(zip(refusals, proofs, strict=True)):
        try:
            seen.add(sealing.included(raw, told, checkpoint))
        except Unproved as no:
            return Check("refusals", False, f"refusal {index}: {no}")
    if len(seen) != len(refusals):
        return Check("refusals", False, "one of them is there twice")
    return Check(
        "refusals", True, f"{len(refusals)} refusals, sealed and in their log; that these are all is not proved"
    )


def _complete(claimed: bool, fold: Fold) -> Check:
    """A closed txn ends with its closing record; an open one may have gone on, and says so."""
    if claimed is not (fold.state == "closed"):
        return Check("complete", False, "the file says otherwise than its last record")
    if fold.state == "closed":
        return Check(
            "complete", True, f"closed by record {fold.seq}: nothing can follow, and nothing before it is missing"
        )
    return Check("complete", True, f"no completeness proof: still open after record {fold.seq}, more may have followed")
