"""JSON Schema: compiled once for a definition, without a network, and never with more work than is bearable."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import jsonschema_rs
import msgspec

from remit_broker.core.findings import pointer
from remit_broker.core.schema_cost import looks, size_of
from remit_schemas.canonical import MAX_DEPTH
from remit_schemas.errors import Code, Refusal, refusal

MAX_SCHEMA: Final = 64 * 1024
"""Largest schema in bytes of JSON."""

MAX_WORK: Final = 5_000_000
"""Most looks at items of one value, estimated from above; a look takes well under a microsecond."""

MAX_WORK_EXPLAINED: Final = 20_000
"""Most looks after which a mismatch is still explained."""

EASY: Final = 40
"""A schema that never looks at one item more often than this is used without measuring the value."""

BACKTRACKS: Final = 2_000
"""Steps back that one pattern with look-around or back-references may take on one string; beyond, it does not match."""

BACKTRACKING: Final = 1_000
"""What such a pattern may cost, in looks: a schema that has one is counted as if every look took that long."""

CACHED: Final = 2048
_REGEX_BYTES: Final = 1 << 20
_LONGEST: Final = 120


class _Compiled(NamedTuple):
    schema: Mapping[str, Any]
    validator: jsonschema_rs.Validator
    names: frozenset[str]
    table: tuple[int, ...]
    weight: int


class JsonSchemas:
    """Validators by definition. Not for use from several threads at once."""

    def __init__(self) -> None:
        self._compiled: OrderedDict[tuple[str, Code], _Compiled] = OrderedDict()

    def check(self, schema: Mapping[str, Any]) -> None:
        """Refuses MALFORMED or TOO_LARGE for a schema that cannot be used: done when a definition is registered."""
        _compile(schema)

    def arguments(self, definition: str, schema: Mapping[str, Any], value: Any) -> None:
        """Refuses ARGUMENTS_INVALID. ``definition`` is the digest of what ``schema`` is part of."""
        self._validate((definition, Code.ARGUMENTS_INVALID), schema, value)

    def result(self, definition: str, schema: Mapping[str, Any], value: Any) -> None:
        """Refuses RESULT_INVALID."""
        self._validate((definition, Code.RESULT_INVALID), schema, value)

    def _validate(self, key: tuple[str, Code], schema: Mapping[str, Any], value: Any) -> None:
        code = key[1]
        compiled = self._of(key, schema)
        easy = compiled.weight == 1 and max(compiled.table) <= EASY
        work = 0 if easy else _bearable(code, compiled, value)
        try:
            if compiled.validator.is_valid(value):
                return
            # To say what is wrong costs far more than to see that something is: it copies the value for every alternative.
            error = next(iter(compiled.validator.iter_errors(value)), None) if work <= MAX_WORK_EXPLAINED else None
        except (ValueError, TypeError, OverflowError, RecursionError) as odd:
            raise refusal(
                code, "it cannot be checked against the schema", rule="schema.value",
                ask="send plain JSON", cause=type(odd).__name__,
            ) from None  # fmt: skip
        raise _mismatch(code, compiled, error)

    def _of(self, key: tuple[str, Code], schema: Mapping[str, Any]) -> _Compiled:
        found = self._compiled.get(key)
        # A digest that comes with another schema than before is not believed.
        if found is None or (found.schema is not schema and found.schema != schema):
            found = self._compiled[key] = _compile(schema)
            if len(self._compiled) > CACHED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(key)
        return found


def _compile(schema: Mapping[str, Any]) -> _Compiled:
    plain = dict(schema)
    try:
        size = len(msgspec.json.encode(plain))
    except (TypeError, ValueError, RecursionError):
        raise _unusable("it is not JSON") from None
    if size > MAX_SCHEMA or size_of(plain)[1] > MAX_DEPTH:
        raise refusal(
            Code.TOO_LARGE, f"a JSON Schema of {size} bytes, {size_of(plain)[1]} levels deep", rule="schema.size",
            ask=f"keep it within {MAX_SCHEMA} bytes and {MAX_DEPTH} levels",
        )  # fmt: skip
    table = looks(plain)
    if table[0] > MAX_WORK:
        raise _unusable("it refers to itself without going deeper into the value, or to too much at once")
    validator, weight = _validator(plain)
    return _Compiled(schema, validator, frozenset(_declared(plain)), table, weight)


def _validator(schema: dict[str, Any]) -> tuple[jsonschema_rs.Validator, int]:
    """With the linear regular expressions where they suffice, else with those that backtrack, within bounds."""
    linear = jsonschema_rs.RegexOptions(size_limit=_REGEX_BYTES)
    bounded = jsonschema_rs.FancyRegexOptions(backtrack_limit=BACKTRACKS, size_limit=_REGEX_BYTES)
    try:
        return _offline(schema, linear), 1
    except (ValueError, TypeError):
        pass
    try:
        return _offline(schema, bounded), BACKTRACKING
    except (ValueError, TypeError) as error:
        raise _unusable(_schema_error(error)) from None


def _offline(
    schema: dict[str, Any], patterns: jsonschema_rs.RegexOptions | jsonschema_rs.FancyRegexOptions
) -> jsonschema_rs.Validator:
    # INVARIANT: no reference leaves the schema: nothing is fetched or read (test_a_remote_reference_is_never_followed).
    return jsonschema_rs.validator_for(schema, offline=True, pattern_options=patterns)


def _unusable(why: str) -> Refusal:
    return refusal(
        Code.MALFORMED, f"the JSON Schema cannot be used: {why}", rule="schema.invalid",
        ask="use JSON Schema (2020-12 unless $schema says otherwise) with references within it only",
    )  # fmt: skip


def _schema_error(error: Exception) -> str:
    if not isinstance(error, jsonschema_rs.ValidationError):
        return str(error).partition("\n")[0][:_LONGEST]
    if isinstance(error.kind, jsonschema_rs.ValidationErrorKind.Referencing):
        return "a reference leads out of it or nowhere"
    where = pointer([str(token) for token in error.instance_path]) or "/"
    return f"at {where}: {_expectation(error)}"


def _bearable(code: Code, compiled: _Compiled, value: Any) -> int:
    """The looks that ``value`` makes, at most. Refuses one that would take too long."""
    items, depth = size_of(value)
    work = items * max(compiled.table[: depth + 1])
    # INVARIANT: no value keeps the validator busy without end
    # (test_what_is_more_work_than_the_bound_is_refused_and_not_tried).
    if work * compiled.weight > MAX_WORK:
        raise refusal(
            code, f"{items} items on {depth} levels are too much work for this schema", rule="schema.work",
            ask="nest less deeply, or send less at once",
        )  # fmt: skip
    return work


def _mismatch(code: Code, compiled: _Compiled, error: jsonschema_rs.ValidationError | None) -> Refusal:
    if error is None:
        return refusal(code, "it does not fit the schema", rule="schema", ask="look at the schema of the target")
    # INVARIANT: only names that the schema itself declares appear, never a value or a name from the content
    # (test_a_refusal_never_shows_the_value).
    tokens = [str(token) if isinstance(token, int) or token in compiled.names else "*" for token in error.instance_path]
    where = pointer(tokens) or "/"
    return refusal(
        code, f"at {where}: {_expectation(error)}", rule=f"schema.{error.kind.name}",
        ask="send what the schema of the target describes",
    )  # fmt: skip


def _expectation(error: jsonschema_rs.ValidationError) -> str:
    """What the schema asks for, in its own words; parts that quote the value are left out."""
    match error.kind:
        case jsonschema_rs.ValidationErrorKind.Type(types=types):
            return f"must be of type {' or '.join(types)}"
        case jsonschema_rs.ValidationErrorKind.Required(property=name):
            return f"must have the member {name[:_LONGEST]!r}"
        case jsonschema_rs.ValidationErrorKind.Enum(options=options):
            return f"must be one of {_short(options)}"
        case jsonschema_rs.ValidationErrorKind.Constant(expected_value=expected):
            return f"must be {_short(expected)}"
        case jsonschema_rs.ValidationErrorKind.Pattern(pattern=regex):
            return f"must match {regex[:_LONGEST]!r}"
        case jsonschema_rs.ValidationErrorKind.Format(format=name):
            return f"must be in the format {name[:_LONGEST]!r}"
        case jsonschema_rs.ValidationErrorKind.AdditionalProperties():
            return "has a member that is not declared"
        case jsonschema_rs.ValidationErrorKind.FalseSchema():
            return "has something that the schema does not allow"
        case jsonschema_rs.ValidationErrorKind.AnyOf() | jsonschema_rs.ValidationErrorKind.OneOfNotValid():
            return f"fits none of the alternatives of {error.kind.name}"
        case jsonschema_rs.ValidationErrorKind.OneOfMultipleValid():
            return "fits more than one of the alternatives of oneOf"
        case jsonschema_rs.ValidationErrorKind.BacktrackLimitExceeded():
            return "takes too long to compare with its pattern"
        case kind:
            limit = getattr(kind, "limit", None)
            return f"must satisfy {kind.name}" + ("" if limit is None else f" {limit}")


def _short(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _declared(schema: Any) -> Iterator[str]:
    """The names of members anywhere in the schema."""
    pending = [schema]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            if isinstance(item.get("properties"), dict):
                yield from item["properties"]
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
