"""The committed JSON Schemas are those of the types that parse, and they agree with the conformance vectors."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import msgspec
import pytest

from remit_schemas import jws
from remit_schemas.budget import ONE_CALL
from remit_schemas.envelope import Accepted, Dispatch, Error, InputRequired, Progress, Request, Result, Started, Want
from remit_schemas.errors import Code, refusal
from remit_schemas.scope import Detail

SCHEMAS = Path(__file__).parents[2] / "schemas"
TXN, HOP = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_schemas", SCHEMAS / "generate_schemas.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def validator(name: str) -> jsonschema.Draft202012Validator:
    schema = json.loads((SCHEMAS / "json" / f"{name}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def vectors(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((SCHEMAS / "vectors" / f"{name}.json").read_text())
    return found


def test_the_committed_schemas_are_those_of_the_types() -> None:
    committed = {path.name: path.read_text() for path in (SCHEMAS / "json").iterdir()}
    assert committed == generator().generate(), "run: python schemas/generate_schemas.py"


@pytest.mark.parametrize("name", sorted(path.stem for path in (SCHEMAS / "json").iterdir()))
def test_every_schema_is_one(name: str) -> None:
    assert not validator(name).is_valid("text")


def test_valid_grants_fit_the_schemas() -> None:
    for case in vectors("grants")["cases"]:
        if case["expect"] == "valid":
            validator("grant-claims").validate(case["claims"])
            validator("grant-header").validate(json.loads(jws.split(case["token"]).header))


def test_malformed_claims_and_headers_do_not_fit_the_schemas() -> None:
    """Every vector that our types refuse, the schema refuses too."""
    seen = 0
    for case in vectors("grants")["cases"]:
        if case.get("rule") in ("grant.claims", "grant.header") and case["name"] != "header-duplicate":
            parts = jws.split(case["token"])
            name, text = (
                ("grant-claims", parts.payload) if case["rule"] == "grant.claims" else ("grant-header", parts.header)
            )
            assert not validator(name).is_valid(json.loads(text)), case["name"]
            seen += 1
    assert seen > 15


def test_records_fit_the_schema() -> None:
    for case in vectors("records")["sealed"]:
        validator("record").validate(case["record"])
        validator("entry").validate({"record": case["record"], "grant": "a.b.c"})


def test_envelopes_and_errors_fit_the_schemas() -> None:
    body = refusal(Code.OUT_OF_SCOPE, "no", rule="narrow.scope").body
    wanted = Want(scopes=(Detail("mcp/a/b"),), budget=ONE_CALL)
    for name, value in (
        ("request", Request(args={"path": "a"}, want=wanted)),
        ("dispatch", Dispatch(txn=TXN, hop=HOP, replica="b1", resource="mcp/a/b", grant="g", args={}, deadline=1)),
        ("frame", Accepted(txn=TXN, hop=HOP, replica="b1")),
        ("frame", Started(connection="c")),
        ("frame", Progress(progress=0.5)),
        ("frame", Result(value=None, cost=ONE_CALL)),
        ("frame", Error(error=body)),
        ("frame", InputRequired(request={})),
        ("error", body),
    ):
        validator(name).validate(json.loads(msgspec.json.encode(value)))
