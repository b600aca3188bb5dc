"""What is narrow: everything bounded and counted, so that no text fits through."""

from __future__ import annotations

import math
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit_broker.core.extraction import TooWide, narrow, parse_endorser

RATING = {
    "type": "object",
    "properties": {
        "stars": {"type": "integer", "minimum": 1, "maximum": 5},
        "mood": {"enum": ["good", "bad", None, 1]},
        "on": {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"},
        "tags": {"type": "array", "maxItems": 2, "items": {"type": "boolean"}},
    },
    "required": ["stars"],
    "additionalProperties": False,
}
FITS = {"stars": 5, "mood": 1, "on": "2026-11-03", "tags": [True, False]}


@pytest.mark.parametrize(
    ("schema", "bits"),
    [
        ({"type": "boolean"}, 1),
        ({"const": "x"}, 0),
        ({"type": "null"}, 0),
        ({"enum": ["a", "b", "c", "d"]}, 2),
        ({"type": "integer", "minimum": 0, "maximum": 255}, 8),
        ({"type": "string", "pattern": "^[A-D]{3}x$"}, 6),
        ({"type": "string", "pattern": r"^\d$"}, math.log2(10)),
        ({"type": "string", "pattern": "^[01]{1,4}$"}, 4 + 2),
        ({"type": "array", "maxItems": 3, "items": {"type": "boolean"}}, 3 + 2),
        ({"type": "object", "properties": {"a": {"type": "boolean"}}, "additionalProperties": False}, 2),
    ],
)
def test_an_answer_carries_so_many_bits(schema: dict[str, Any], bits: float) -> None:
    assert narrow(schema).bits == pytest.approx(bits)


def test_what_fits_is_admitted() -> None:
    assert narrow(RATING).admits(FITS) and narrow(RATING).admits({"stars": 1})


@pytest.mark.parametrize(
    "change",
    [
        {"stars": 6}, {"stars": 0}, {"stars": 4.0}, {"stars": True}, {"stars": "4"}, {"mood": "Good"}, {"mood": True},
        {"mood": 2**60}, {"on": "2026-11-03\n"}, {"on": "on 2026-11-03"}, {"on": "\uff12\uff10\uff12\uff16-11-03"}, {"on": 20261103},
        {"tags": [True, False, True]}, {"tags": ["yes"]}, {"tags": {"0": True}}, {"why": "because"},
    ],
)  # fmt: skip
def test_what_does_not_fit_to_the_last_character_is_not(change: dict[str, Any]) -> None:
    assert not narrow(RATING).admits({**FITS, **change})


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))  # fmt: skip
def test_no_value_at_all_raises(value: Any) -> None:
    assert narrow(RATING).admits(value) in (True, False)


@pytest.mark.parametrize(
    "schema",
    [
        {}, "text", {"type": "string"}, {"type": "string", "maxLength": 5}, {"type": "number", "minimum": 0, "maximum": 1},
        {"type": "integer"}, {"type": "integer", "minimum": 0}, {"type": "integer", "minimum": 0, "maximum": 1.5},
        {"type": "object", "properties": {}}, {"type": "object", "additionalProperties": False},
        {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": False},
        {"type": "object", "properties": {}, "additionalProperties": False, "patternProperties": {}},
        {"type": "object", "properties": {}, "additionalProperties": False, "required": ["x"]},
        {"type": "array", "items": {"type": "boolean"}}, {"type": "array", "maxItems": 9},
        {"anyOf": [{"type": "boolean"}]}, {"$ref": "#/x"}, {"enum": []}, {"enum": [[1]]}, {"enum": [0.5]},
        {"enum": ["a"], "pattern": "x"}, {"type": ["string", "null"]},
        *({"type": "string", "pattern": pattern} for pattern in (
            "[a-z]", "^.{3}$", "^a*$", "^a+$", "^(a|b)$", "^a|b$", "^[^a]$", r"^\w$", r"^\S$", "^[ a]$", "^a{2,1}$", "^[z-a]$",
            "^a?$", "^$a$", "^[a\\]]$", "^a.b$", "^a{9999}$")),
    ],
)  # fmt: skip
def test_what_is_not_bounded_is_no_narrow_schema(schema: Any) -> None:
    with pytest.raises(TooWide):
        narrow(schema)


@given(st.text(alphabet=string.printable, max_size=12))
def test_a_pattern_is_counted_for_what_it_admits_or_refused(body: str) -> None:
    """Whatever the pattern: if it is understood, a text with a space or a line in it never fits."""
    try:
        shape = narrow({"type": "string", "pattern": f"^{body}$"})
    except TooWide:
        return
    assert not shape.admits(" ") and not shape.admits("a b") and not shape.admits("a\n")


def test_an_endorser_says_all_that_it_is() -> None:
    raw = {"name": "rating", "target": "agent/dora/rate", "lowers": ["web", "untrusted"], "schema": RATING}
    assert parse_endorser(raw).lowers == {"web", "untrusted"}
    changes: tuple[dict[str, Any], ...] = (
        {"name": "No"}, {"target": "agent/dora/*"}, {"target": "dora"}, {"lowers": []}, {"lowers": ["No Label"]},
        {"lowers": [f"l{n}" for n in range(17)]}, {"bits": 8}, {"bits": 0}, {"bits": 4096}, {"bits": "64"}, {"more": 1},
        {"schema": None}, {"schema": {"type": "string"}},
    )  # fmt: skip
    for change in changes:
        with pytest.raises(TooWide):
            parse_endorser({**raw, **change})
