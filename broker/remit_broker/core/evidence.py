"""Evidence of one chain: one file that somebody who trusts nobody here can check offline with the published keys.

What it proves: every record is as it was sealed and in its place; every grant was signed by a published key, names the
record that authorised it, and is no wider than the grant above it; the accounts add up. What it cannot prove yet: that
the operator, who holds the keys, did not make the whole chain up, or leave another one out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from remit_broker.core.fold import Corrupt, Fold, fold_all
from remit_schemas.bundle import verify_link
from remit_schemas.canonical import loads
from remit_schemas.errors import Refusal
from remit_schemas.grant import Grant, parse, verify
from remit_schemas.keys import KeySet
from remit_schemas.records import HopRefused, hash_of
from remit_schemas.scope import Detail

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
    entries: Iterable[Mapping[str, Any]], refusals: list[dict[str, Any]], jwks: Mapping[str, Any]
) -> dict[str, Any]:
    """The evidence of one txn: its records in order, every grant that a record names, and what was refused."""
    entries = list(entries)
    first = entries[0]["record"]
    return {
        "v": VERSION,
        "txn": first["txn"],
        "records": [entry["record"] for entry in entries],
        "grants": [entry["grant"] for entry in entries if entry["grant"] is not None],
        "refusals": refusals,
        "keys": jwks,
        "complete": entries[-1]["record"]["kind"] == "txn.closed",
    }


def read(data: bytes) -> dict[str, Any]:
    """An evidence file. Refuses MALFORMED or TOO_LARGE."""
    value = loads(data, max_bytes=MAX_EVIDENCE)
    return value if isinstance(value, dict) else {}


def verify_evidence(evidence: Mapping[str, Any], keys: KeySet, allowed_cycles: frozenset[tuple[str, str]]) -> Verdict:
    """Check everything, with no trust in anything but ``keys``. Never raises for what a file may contain."""
    checks = [_form(evidence)]
    if checks[0].ok:
        records: list[dict[str, Any]] = evidence["records"]
        accounts, fold = _records(evidence["txn"], records)
        checks.append(accounts)
        grants, found = _grants(evidence["grants"], records, keys)
        checks += [grants, _links(found, records, allowed_cycles), _refusals(evidence["refusals"], evidence["txn"])]
        checks.append(_complete(evidence, fold))
    return Verdict(all(check.ok for check in checks), tuple(checks))


def _form(evidence: Mapping[str, Any]) -> Check:
    if evidence.get("v") != VERSION:
        return Check("form", False, f"v is {evidence.get('v')!r}, this verifier knows {VERSION}")
    for name in ("records", "grants", "refusals"):
        if not isinstance(evidence.get(name), list):
            return Check("form", False, f"{name} is not a list")
    if not all(isinstance(record, dict) for record in [*evidence["records"], *evidence["refusals"]]):
        return Check("form", False, "a record is not an object")
    return Check("form", True, f"version {VERSION}")


def _records(txn: Any, records: list[dict[str, Any]]) -> tuple[Check, Fold | None]:
    """Hashes, order, gaps, and the accounts: the fold accepts nothing that a broker would not have appended."""
    try:
        fold = fold_all(records)
    except Corrupt as bad:
        return Check("records", False, f"record {bad.where.rpartition('#')[2]}: {bad.why}"), None
    if fold.txn != txn:
        return Check("records", False, f"record 0: it is of txn {fold.txn}, the file says {txn!r}"), None
    return Check("records", True, f"{len(records)} records, hash chain and accounts"), fold


def _grants(tokens: list[Any], records: list[dict[str, Any]], keys: KeySet) -> tuple[Check, dict[str, Grant]]:
    """Every record that mints a grant has it here, signed, and each names that record's hash."""
    minting = {raw["jti"]: raw for raw in records if raw.get("kind") in ("txn.opened", "hop.opened") and "jti" in raw}
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
            return Check(
                "grants", False, f"grant {index}: its {mismatch} is not that of record {record.get('seq')}"
            ), found
        found[grant.jti.hop] = grant
    if minting:
        return Check(
            "grants", False, f"the grant of record {next(iter(minting.values())).get('seq')} is missing"
        ), found
    return Check("grants", True, f"{len(found)} grants, signatures and the records they name"), found


def _mismatch(grant: Grant, record: dict[str, Any]) -> str:
    """The first claim that is not what the record says, or nothing."""
    claims = grant.claims
    said = {
        "rec": (claims.rec, record.get("hash")),
        "exp": (claims.exp, record.get("exp")),
        "budget": (msgspec.to_builtins(claims.budget), record.get("budget")),
        "max_depth": (claims.max_depth, record.get("max_depth")),
        "depth": (claims.depth, record.get("depth", 0)),
        "authorization_details": (claims.authorization_details, _details(record.get("scope"))),
        "aud": (claims.aud, record.get("agent") or str(record.get("resource", "")).split("/")[1:2][0]),
    }
    return next((name for name, (one, other) in said.items() if one != other), "")


def _details(raw: Any) -> tuple[Detail, ...] | None:
    try:
        return msgspec.convert(raw, tuple[Detail, ...])
    except msgspec.ValidationError:
        return None


def _links(found: dict[str, Grant], records: list[dict[str, Any]], allowed: frozenset[tuple[str, str]]) -> Check:
    """Each grant is no wider than the one it was delegated from."""
    for raw in records:
        if raw.get("kind") != "hop.opened":
            continue
        parent, child = found.get(raw.get("parent", "")), found.get(raw.get("hop", ""))
        if parent is None or child is None:
            return Check("links", False, f"record {raw.get('seq')}: the grant, or the one above it, is missing")
        try:
            verify_link(parent, child, allowed)
        except Refusal as bad:
            return Check("links", False, f"record {raw.get('seq')}: {bad.body.message} ({bad.body.rule})")
    return Check("links", True, f"{max(len(found) - 1, 0)} delegations, none wider than its parent")


def _refusals(refusals: list[dict[str, Any]], txn: Any) -> Check:
    for index, raw in enumerate(refusals):
        try:
            msgspec.convert(raw, HopRefused)
            good = raw.get("hash") == hash_of(raw) and raw.get("txn") == txn
        except (ValueError, TypeError):
            good = False
        if not good:
            return Check("refusals", False, f"refusal {index}: it is not as it was sealed, or of another txn")
    return Check("refusals", True, f"{len(refusals)} refusals as they were sealed; that these are all is not proved")


def _complete(evidence: Mapping[str, Any], fold: Fold | None) -> Check:
    """A closed txn ends with its closing record; an open one may have gone on, and says so."""
    if fold is None:
        return Check("complete", False, "the records do not hold")
    if evidence.get("complete") is not (fold.state == "closed"):
        return Check("complete", False, "the file says otherwise than its last record")
    if fold.state == "closed":
        return Check("complete", True, f"closed by record {fold.seq}; nothing can follow")
    return Check("complete", True, f"still open after record {fold.seq}: more may have followed")
