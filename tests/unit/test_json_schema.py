"""Values are checked against schemas offline, within bounds, and a refusal says what is expected without showing the value."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from remit_broker.adapters.json_schema import CACHED, EASY, MAX_SCHEMA, MAX_WORK, JsonSchemas
from remit_broker.core.schema_cost import ENDLESS, looks, size_of
from remit_schemas.errors import Code, ErrorBody, Refusal

READ: dict[str, Any] = {
    "type": "object",
    "properties": {"path": {"type": "string", "maxLength": 20}, "lines": {"type": "integer", "minimum": 1}},
    "required": ["path"],
    "additionalProperties": False,
}


def refused(schema: dict[str, Any], value: Any) -> ErrorBody | None:
    try:
        JsonSchemas().arguments("d", schema, value)
    except Refusal as no:
        return no.body
    return None


def unusable(schema: Any) -> ErrorBody:
    with pytest.raises(Refusal) as no:
        JsonSchemas().check(schema)
    return no.value.body


def test_what_fits_passes():
    assert refused(READ, {"path": "docs/a.md", "lines": 3}) is None
    assert refused({}, {"anything": [1, None, "x"]}) is None


@pytest.mark.parametrize(
    ("value", "message", "rule"),
    [
        ({}, "at /: must have the member 'path'", "schema.required"),
        ({"path": 7}, "at /path: must be of type string", "schema.type"),
        ({"path": "x" * 21}, "at /path: must satisfy maxLength 20", "schema.maxLength"),
        ({"path": "x", "lines": 0}, "at /lines: must satisfy minimum 1", "schema.minimum"),
        ([], "at /: must be of type object", "schema.type"),
    ],
)
def test_a_mismatch_is_refused_with_place_and_expectation(value: Any, message: str, rule: str):
    body = refused(READ, value)
    assert body is not None
    assert (body.code, body.message, body.rule) == (Code.ARGUMENTS_INVALID, message, rule)
    assert body.ask


def test_a_result_is_refused_with_its_own_code():
    with pytest.raises(Refusal) as no:
        JsonSchemas().result("d", READ, {})
    assert no.value.body.code is Code.RESULT_INVALID


S = "s3cr3t-value"


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "integer"}, S),
        ({"enum": ["a"]}, S),
        ({"const": 1}, S),
        ({"pattern": "^a$"}, S),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "format": "email"}, S),
        ({"maxLength": 3}, S),
        ({"anyOf": [{"type": "integer"}, {"const": "a"}]}, S),
        ({"oneOf": [{"type": "string"}, {"minLength": 1}]}, S),
        ({"not": {"type": "string"}}, S),
        ({"additionalProperties": False}, {S: 1}),
        ({"properties": {"a": {}}, "additionalProperties": False}, {S: 1}),
        ({"additionalProperties": {"type": "integer"}}, {S: S}),
        ({"patternProperties": {"^s": {"type": "integer"}}}, {S: S}),
        ({"propertyNames": {"maxLength": 3}}, {S: 1}),
        ({"unevaluatedProperties": False}, {S: 1}),
        ({"uniqueItems": True}, [S, S]),
        ({"contains": {"type": "integer"}}, [S]),
        ({"items": {"properties": {"a": {"type": "integer"}}}}, [{"a": S}]),
        ({"dependentRequired": {"a": ["b"]}}, {"a": S}),
    ],
)
def test_a_refusal_never_shows_the_value(schema: dict[str, Any], value: Any):
    with pytest.raises(Refusal) as no:
        JsonSchemas().result("d", schema, value)
    assert S not in repr(no.value.body) + no.value.cause + str(no.value)


def test_a_name_that_the_schema_declares_is_shown_and_another_is_not():
    schema = {"additionalProperties": {"properties": {"a/b": {"items": {"type": "integer"}}}}}
    body = refused(schema, {"mine": {"a/b": [1, "x"]}})
    assert body is not None
    assert body.message == "at /*/a~1b/1: must be of type integer"


@pytest.mark.parametrize("value", [10**400, {1: 2}, float("nan"), object(), {"a": {"b": object()}}])
def test_what_is_not_json_is_refused_or_passes_and_never_crashes(value: Any):
    body = refused({"type": "object", "properties": {"a": {"type": "object"}}}, value)
    assert body is None or body.code is Code.ARGUMENTS_INVALID


# Schemas that cannot be used


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "strin"},
        {"type": 5},
        {"properties": []},
        {"required": "path"},
        {"pattern": "("},
        {"pattern": "(?:a{1,1000}){1,1000}"},
        {"$ref": "#/$defs/nothing"},
        {"$schema": "https://example.org/mine", "type": "string"},
        {"default": float("nan"), "$ref": "#"},
        {"default": object()},
    ],
    ids=repr,
)
def test_an_invalid_schema_is_refused_when_it_is_registered(schema: Any):
    body = unusable(schema)
    assert (body.code, body.rule) == (Code.MALFORMED, "schema.invalid")
    assert body.ask


def test_a_schema_that_is_too_large_or_too_deep_is_refused():
    assert unusable({"description": "x" * MAX_SCHEMA}).code is Code.TOO_LARGE
    deep: dict[str, Any] = {}
    for _ in range(70):
        deep = {"items": deep}
    assert unusable(deep).code is Code.TOO_LARGE


@pytest.fixture
def listener() -> Iterator[tuple[str, list[str]]]:
    """A web server that would serve a schema, and what it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "BASE/a"},
        {"$ref": "BASE/a#/b"},
        {"$dynamicRef": "BASE/a"},
        {"$schema": "BASE/a"},
        {"$id": "BASE/a", "$ref": "b"},
        {"$id": "BASE/a/", "properties": {"x": {"$ref": "../b#/c"}}},
        {"$defs": {"a": {"$ref": "BASE/a"}}, "type": "string"},
        {"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"a": {"$ref": "BASE/a"}}},
    ],
    ids=repr,
)
def test_a_remote_reference_is_never_followed(schema: dict[str, Any], listener: tuple[str, list[str]]):
    base, asked = listener
    text = repr(schema).replace("BASE", base)
    remote: dict[str, Any] = eval(text)
    try:
        JsonSchemas().arguments("d", remote, {"x": 1})
    except Refusal as no:
        assert no.body.code is Code.MALFORMED
    else:
        pytest.fail("a schema with a remote reference was used")
    assert asked == []


def test_a_file_is_never_read(tmp_path: Path):
    file = tmp_path / "a.json"
    file.write_text("{}")
    assert unusable({"$ref": file.as_uri()}).code is Code.MALFORMED


def test_references_within_the_schema_work():
    schema = {
        "$id": "https://example.org/root",
        "$defs": {"name": {"$anchor": "n", "type": "string"}, "other": {"$id": "other", "type": "integer"}},
        "properties": {
            "a": {"$ref": "#/$defs/name"},
            "b": {"$ref": "#n"},
            "c": {"$ref": "https://example.org/root#/$defs/name"},
            "d": {"$ref": "other"},
        },
    }
    assert refused(schema, {"a": "x", "b": "x", "c": "x", "d": 1}) is None
    for name in "abcd":
        assert refused(schema, {name: []}) is not None


def test_older_drafts_are_understood():
    draft7 = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "items": [{"type": "string"}],
        "additionalItems": False,
    }
    assert refused(draft7, ["a"]) is None
    assert refused(draft7, ["a", "b"]) is not None


# Bounds


@pytest.mark.parametrize(
    "pattern", [r"^(a+)+$", r"^(a|a)*$", r"^(a+)+(?=b)$", r"^(?!x)(a|aa|a?)+\1$", r"^(([a-z])+.)+[A-Z]([a-z])+$"]
)
def test_no_pattern_keeps_the_validator_busy(pattern: str):
    began = time.perf_counter()
    body = refused({"pattern": pattern}, "a" * 100_000 + "!")
    assert body is not None
    # Bounded steps take milliseconds; unbounded backtracking would not end.
    assert time.perf_counter() - began < 5


BACKTRACKS = {"items": {"not": {"pattern": r"^(?!x)(a|aa|a?)+\1$"}}}


def slow_strings(count: int) -> list[str]:
    """All different: what was found of one is not looked for again."""
    return ["a" * 30 + f"!{i}" for i in range(count)]


def test_a_pattern_that_backtracks_is_stopped_on_every_string():
    began = time.perf_counter()
    body = refused(BACKTRACKS, slow_strings(1000))
    # Not known to match and not known not to match: refused, also below a `not`.
    assert body is not None
    # About 0.1 s within the bound; 15 s without.
    assert time.perf_counter() - began < 4


def test_a_pattern_that_backtracks_is_not_tried_on_too_many_strings():
    body = refused(BACKTRACKS, slow_strings(20_000))
    assert body is not None
    assert body.rule == "schema.work"
    linear = {"items": {"not": {"pattern": "^(a+)+$"}}}
    assert refused(linear, slow_strings(20_000)) is None


def test_look_around_works_where_a_schema_needs_it():
    email = {
        "pattern": r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
    }
    assert refused(email, "ann.smith@mail.example.org") is None
    assert refused(email, "ann..smith@mail.example.org") is not None


NODE = {"$ref": "#/$defs/node"}
DOUBLING: dict[str, Any] = {
    "$defs": {
        "node": {
            "oneOf": [
                {"const": 1},
                {"type": "object", "properties": {"c": NODE}},
                {"type": "object", "properties": {"c": NODE, "d": {}}},
            ]
        }
    },
    **NODE,
}
JSON: dict[str, Any] = {
    "$defs": {
        "node": {
            "anyOf": [
                {"type": ["string", "number", "boolean", "null"]},
                {"type": "array", "items": NODE},
                {"type": "object", "additionalProperties": NODE},
            ]
        }
    },
    **NODE,
}
TREE: dict[str, Any] = {
    "type": "object",
    "properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}, "n": {"type": "integer"}},
}


def nested(levels: int, name: str = "c") -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {name: value}
    return value


def test_a_schema_that_doubles_the_work_with_every_level():
    JsonSchemas().check(DOUBLING)
    assert refused(DOUBLING, nested(0)) is None
    began = time.perf_counter()
    rules = []
    for levels in (8, 12, 30, 60):
        body = refused(DOUBLING, nested(levels))
        assert body is not None
        assert body.code is Code.ARGUMENTS_INVALID
        rules.append(body.rule)
    assert rules == ["schema.oneOf", "schema", "schema.work", "schema.work"]
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("schema", [JSON, TREE], ids=["json", "tree"])
def test_ordinary_recursive_schemas_take_values_of_any_depth(schema: dict[str, Any]):
    assert max(looks(schema)) <= EASY
    bottom: Any = {} if schema is TREE else 1
    for _ in range(60):
        bottom = {"left": bottom}
    assert refused(schema, bottom) is None


def test_a_schema_that_multiplies_without_recursion_is_refused():
    defs: dict[str, Any] = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)}
    schema = {"$defs": {**defs, "d40": {"type": "integer"}}, "$ref": "#/$defs/d0"}
    assert looks(schema)[0] > MAX_WORK
    assert unusable(schema).rule == "schema.invalid"


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"allOf": [{"$ref": "#"}]},
        {"$defs": {"a": {"not": {"$ref": "#/$defs/b"}}, "b": {"if": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"},
    ],
)
def test_a_schema_that_refers_to_itself_in_a_circle_is_refused(schema: dict[str, Any]):
    assert looks(schema) == (ENDLESS,)
    assert unusable(schema).rule == "schema.invalid"


def test_the_size_of_a_value():
    assert size_of(1) == (1, 0)
    assert size_of([]) == (1, 0)
    assert size_of({"a": [1, 2], "b": {}}) == (5, 2)


def test_validators_are_compiled_once_for_a_definition(monkeypatch: pytest.MonkeyPatch):
    compiled: list[object] = []
    real = jsonschema_rs.validator_for

    def counted(*args: Any, **options: Any) -> Any:
        compiled.append(args)
        return real(*args, **options)

    monkeypatch.setattr(jsonschema_rs, "validator_for", counted)
    schemas = JsonSchemas()
    for _ in range(3):
        schemas.arguments("d", READ, {"path": "x"})
        schemas.result("d", {"type": "integer"}, 1)
    assert len(compiled) == 2
    # The same digest with another schema is not believed.
    with pytest.raises(Refusal):
        schemas.arguments("d", {"type": "integer"}, {"path": "x"})
    for i in range(CACHED + 10):
        schemas.arguments(f"d{i}", {}, 1)
    assert len(schemas._compiled) == CACHED
