"""JSON: what is accepted, what is refused, and the form that is hashed."""

from __future__ import annotations

import pytest

from remit_schemas.canonical import MAX_DEPTH, MAX_INTEGER, canonical, digest, loads
from remit_schemas.errors import Code, Refusal


def refused(data: bytes, max_bytes: int = 1 << 20) -> Refusal:
    with pytest.raises(Refusal) as caught:
        loads(data, max_bytes=max_bytes)
    return caught.value


def nested(depth: int, open_: str = "[", close: str = "]") -> bytes:
    return (open_ * depth + "1" + close * depth).encode()


def test_ordinary_json_is_read() -> None:
    assert loads(b' {"a": [1, 2.5, true, null, "\xc3\xa9"]} ', max_bytes=100) == {"a": [1, 2.5, True, None, "é"]}


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b'{"a":1,"a":1}', "json.duplicate"),
        (b'{"x":{"a":1,"\\u0061":2}}', "json.duplicate"),
        (b"NaN", "json.number"),
        (b'{"a":[Infinity]}', "json.number"),
        (b"-Infinity", "json.number"),
        (b"1e999", "json.number"),
        (b"-1e999", "json.number"),
        (str(MAX_INTEGER + 1).encode(), "json.number"),
        (str(-MAX_INTEGER - 1).encode(), "json.number"),
        (b"9" * 100_000, "json.number"),
        (b'"\xff"', "json.encoding"),
        (b'"\xed\xa0\x80"', "json.encoding"),
        (b"", "json.syntax"),
        (b"{", "json.syntax"),
        (b"{} {}", "json.syntax"),
        (b"{'a':1}", "json.syntax"),
        (b"[1,]", "json.syntax"),
        (b'"\n"', "json.syntax"),
        (b"\xef\xbb\xbf{}", "json.syntax"),
        (b"01", "json.syntax"),
    ],
)
def test_what_is_not_strict_json_is_refused(data: bytes, rule: str) -> None:
    refusal = refused(data)
    assert (refusal.body.code, refusal.body.rule) == (Code.MALFORMED, rule)
    assert refusal.body.ask


def test_the_largest_integers_are_read() -> None:
    assert loads(f"[{MAX_INTEGER},{-MAX_INTEGER}]".encode(), max_bytes=100) == [MAX_INTEGER, -MAX_INTEGER]


def test_case_variants_are_other_names() -> None:
    assert loads(b'{"a":1,"A":2}', max_bytes=100) == {"a": 1, "A": 2}


def test_size_is_refused_before_anything_is_parsed() -> None:
    assert loads(b"[1]", max_bytes=3) == [1]
    assert refused(b"\xff\xff\xff\xff", max_bytes=3).body.code is Code.TOO_LARGE


@pytest.mark.parametrize(("open_", "close"), [("[", "]"), ('{"a":', "}")])
def test_depth_is_limited(open_: str, close: str) -> None:
    assert loads(nested(MAX_DEPTH, open_, close), max_bytes=10_000)
    for depth in (MAX_DEPTH + 1, 5_000, 100_000):
        assert refused(nested(depth, open_, close)).body.rule == "json.depth"


def test_a_parser_message_goes_to_the_operator_only() -> None:
    refusal = refused(b'{"password": hunter2}')
    assert refusal.cause
    assert refusal.cause not in refusal.body.message


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"b": 1, "a": [True, None]}, b'{"a":[true,null],"b":1}'),
        ({"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\x80": 6, "\u00f6": 7},
         '{"\\r":2,"1":4,"\x80":6,"ö":7,"€":1,"😀":5,"\ufb33":3}'.encode()),
        ([333333333.33333329, 1e30, 4.5, 2e-3, 1e-27, 1.0, -0.0], b"[333333333.3333333,1e+30,4.5,0.002,1e-27,1,0]"),
        ("\u20ac$\x0f\nA'\x42\"\\\\\"/", '"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"'.encode()),
    ],
)  # fmt: skip
def test_the_canonical_form_is_that_of_rfc_8785(value: object, expected: bytes) -> None:
    assert canonical(value) == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf"), MAX_INTEGER + 1, "\ud800"])
def test_what_has_no_canonical_form_is_an_error(value: object) -> None:
    with pytest.raises(ValueError):
        canonical(value)


def test_a_digest_is_lower_case_hex_sha_256() -> None:
    assert digest(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
