"""The committed conformance vectors are those the generator writes, and this implementation honours each of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from remit_schemas.bundle import verify_bundle
from remit_schemas.canonical import canonical, digest
from remit_schemas.errors import Refusal
from remit_schemas.grant import parse, verify
from remit_schemas.keys import KeySet
from remit_schemas.names import is_op, token, untoken
from remit_schemas.records import GENESIS, hash_of, parse_record, plain
from remit_schemas.scope import Scope, parse_scope
from tools.vectors import generate

SCHEMAS = Path(__file__).parents[2] / "schemas"


def document(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((SCHEMAS / "vectors" / f"{name}.json").read_text())
    return found


def named(name: str, member: str = "cases") -> list[Any]:
    return [pytest.param(case, id=case["name"]) for case in document(name)[member]]


GRANTS, BUNDLES, RECORDS, SCOPES, NAMES = map(document, ("grants", "bundles", "records", "scopes", "names"))


def test_the_committed_vectors_are_those_the_generator_writes() -> None:
    fresh = generate()
    committed = {path.name: path.read_text() for path in (SCHEMAS / "vectors").iterdir()}
    assert committed == fresh, "run: python -m tools.vectors"


@pytest.mark.parametrize("case", named("grants"))
def test_grants(case: dict[str, Any]) -> None:
    def run() -> Any:
        keys = KeySet.from_jwks(GRANTS["jwks"])
        unverified = parse(case["token"])
        return verify(unverified, keys, issuer=GRANTS["issuer"], audience=case["audience"], now=GRANTS["now"])

    if case["expect"] == "valid":
        grant = run()
        assert json.loads(parse(grant.token).parts.payload) == case["claims"]
        assert [*grant.chain] == case["chain"]
        assert grant.digest == case["digest"]
    else:
        with pytest.raises(Refusal) as caught:
            run()
        assert (caught.value.body.code, caught.value.body.rule) == (case["code"], case["rule"])


@pytest.mark.parametrize("case", named("bundles"))
def test_bundles(case: dict[str, Any]) -> None:
    def run() -> Any:
        return verify_bundle(
            case["tokens"], KeySet.from_jwks(BUNDLES["jwks"]), issuer=BUNDLES["issuer"], now=BUNDLES["now"],
            audience=case["audience"], allowed_cycles={tuple(pair) for pair in case.get("allowed_cycles", [])},
        )  # fmt: skip

    if case["expect"] == "valid":
        assert [grant.token for grant in run()] == case["tokens"]
    else:
        with pytest.raises(Refusal) as caught:
            run()
        assert (caught.value.body.code, caught.value.body.rule) == (case["code"], case["rule"])


def test_every_rule_about_grants_and_bundles_has_an_invalid_vector() -> None:
    source = "".join(
        (SCHEMAS / "remit_schemas" / f"{name}.py").read_text() for name in ("jws", "grant", "claims", "bundle")
    )
    rules = set(re.findall(r'"((?:grant|bundle)\.[a-z_]+)"', source)) | {
        f"bundle.{c}" for c in ("iss", "sub", "tenant", "txn")
    }
    covered = {case.get("rule") for case in GRANTS["cases"] + BUNDLES["cases"]}
    assert rules - covered == {"bundle.iss", "bundle.depth"}  # cannot get past the checks before them


@pytest.mark.parametrize("case", RECORDS["sealed"])
def test_sealed_records(case: dict[str, Any]) -> None:
    body = {name: value for name, value in case["record"].items() if name != "hash"}
    assert canonical(body).decode() == case["canonical"]
    assert digest(case["canonical"].encode()) == case["hash"] == case["record"]["hash"] == hash_of(case["record"])
    assert canonical(plain(parse_record(case["record"]))) == canonical(case["record"])


def first_fault(records: list[dict[str, Any]]) -> tuple[int, str] | None:
    """Where and how a sequence of records stops being one (the definition in the words of the contract)."""
    prev = GENESIS
    for seq, record in enumerate(records):
        if hash_of(record) != record["hash"]:
            return seq, "hash"
        if record["seq"] != seq:
            return seq, "seq"
        if record["prev"] != prev:
            return seq, "prev"
        prev = record["hash"]
    return None


@pytest.mark.parametrize("case", named("records", "chains"))
def test_chains_of_records(case: dict[str, Any]) -> None:
    expected = None if case["expect"] == "valid" else (case["seq"], case["fault"])
    assert first_fault(case["records"]) == expected


def scope(texts: list[str]) -> Scope:
    return Scope.of(map(parse_scope, texts))


@pytest.mark.parametrize("case", SCOPES["covers"], ids=str)
def test_scopes_cover(case: dict[str, Any]) -> None:
    assert scope(case["scope"]).covers(case["resource"], case["args"]) is case["covers"]


@pytest.mark.parametrize("case", SCOPES["meets"], ids=str)
def test_scopes_meet(case: dict[str, Any]) -> None:
    a, b, meet = scope(case["a"]), scope(case["b"]), scope(case["meet"])
    assert a & b == b & a == meet
    assert [f"{d.resource}" + (canonical(d.args).decode() if d.args else "") for d in (a & b).details] == case["meet"]


@pytest.mark.parametrize("case", SCOPES["within"], ids=str)
def test_scopes_within(case: dict[str, Any]) -> None:
    assert (scope(case["a"]) <= scope(case["b"])) is case["within"]


@pytest.mark.parametrize("text", SCOPES["malformed"])
def test_malformed_scopes_are_refused(text: str) -> None:
    with pytest.raises(Refusal):
        parse_scope(text)


@pytest.mark.parametrize("case", NAMES["tokens"], ids=str)
def test_names_and_tokens(case: dict[str, Any]) -> None:
    assert is_op(case["name"])
    assert token(case["name"]) == case["token"]
    assert untoken(case["token"]) == case["name"]


@pytest.mark.parametrize("text", NAMES["no_token"])
def test_what_is_nobodys_token(text: str) -> None:
    assert untoken(text) is None
