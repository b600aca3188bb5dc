"""Names, ids and resources: which are legal."""

from __future__ import annotations

import pytest

from remit_schemas.errors import Code, Refusal
from remit_schemas.names import (
    RESERVED,
    Jti,
    Resource,
    is_connection,
    is_hop,
    is_op,
    is_principal,
    is_tenant,
    is_txn,
    parse_jti,
    parse_resource,
    token,
    untoken,
)

TXN = "0af7651916cd43dd8448eb211c80319c"
HOP = "b7ad6b7169203331"


@pytest.mark.parametrize("name", ["a", "0", "researcher", "git-2", "a_b", "a" * 63])
def test_a_plain_lower_case_name_is_a_principal_and_a_tenant(name: str) -> None:
    assert is_principal(name)
    assert is_tenant(name)


@pytest.mark.parametrize(
    "name", ["", "A", "-a", "_a", "a.b", "a b", "a*", "a>", "a/b", "a\n", "\na", "ä", "٣", "a" * 64, "a\x00"]
)
def test_any_other_name_is_neither(name: str) -> None:
    assert not is_principal(name)
    assert not is_tenant(name)


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_a_reserved_name_is_no_principal(name: str) -> None:
    assert not is_principal(name)


@pytest.mark.parametrize(
    "op", ["read_file", "Read File", "a.b", "...", "$resource", "日本", "a=b", "a>b", "{x}", "x" * 256]
)
def test_a_tool_may_have_any_printable_name(op: str) -> None:
    assert is_op(op)


@pytest.mark.parametrize(
    "op", ["", ".", "..", "a/b", "*", "a*b", "a\nb", "a\x00", "\ud800", "a\u200bb", "\ufb01", "e\u0301", "x" * 257]
)
def test_a_tool_may_not_have_a_name_that_hides_something(op: str) -> None:
    assert not is_op(op)


@pytest.mark.parametrize(
    "text", ["a" * 15, "a" * 65, "abcdefghijklmno*", "abcdefghijklmno>", "abcdefgh.ijklmnop", "é" * 20]
)
def test_a_connection_is_one_plain_token(text: str) -> None:
    assert is_connection("Abcdefghijklmno0")
    assert not is_connection(text)
    assert not is_connection("a" * 16 + "\n")


def test_ids_are_lower_case_hex_of_their_length_and_not_zero() -> None:
    assert is_txn(TXN) and is_hop(HOP)
    for wrong in (TXN.upper(), TXN[:-1], TXN + "0", "0" * 32, TXN[:-1] + "g", TXN + "\n", ""):
        assert not is_txn(wrong)
    for wrong in (HOP.upper(), HOP[:-1], HOP + "0", "0" * 16, HOP[:-1] + "g", HOP + "\n", ""):
        assert not is_hop(wrong)


def test_a_jti_is_read_as_it_is_written() -> None:
    jti = Jti(TXN, HOP, 12)
    assert parse_jti(str(jti)) == jti


@pytest.mark.parametrize(
    "text",
    ["", TXN, f"{TXN}.{HOP}", f"{TXN}.{HOP}.0", f"{TXN}.{HOP}.01", f"{TXN}.{HOP}.-1", f"{TXN}.{HOP}.1.1",
     f"{TXN}.{HOP}.1\n", f"{TXN}.{HOP}.{'9' * 10}", f"{TXN.upper()}.{HOP}.1", f"{TXN}.{HOP}.\u0661"],
)  # fmt: skip
def test_what_is_no_jti_is_none(text: str) -> None:
    assert parse_jti(text) is None


def test_a_resource_is_read_as_it_is_written() -> None:
    assert parse_resource("mcp/files/read_file") == Resource("mcp", "files", "read_file")
    assert str(parse_resource("agent/researcher/look up")) == "agent/researcher/look up"


@pytest.mark.parametrize(
    "text", ["", "mcp", "mcp/files", "mcp/files/", "mcp/files/a/b", "tool/a/b", "mcp/Files/a", "mcp/remit/a", "mcp/*/a",
             "mcp/files/*", "MCP/files/a", "mcp/files/..", " mcp/files/a"],
)  # fmt: skip
def test_what_is_no_resource_is_refused_with_what_one_looks_like(text: str) -> None:
    with pytest.raises(Refusal) as caught:
        parse_resource(text)
    assert caught.value.body.code is Code.MALFORMED
    assert "agent/<agent>/<skill>" in caught.value.body.ask


@pytest.mark.parametrize(
    ("name", "expected"),
    [("read_file", "read_file"), ("a.b", "a=2Eb"), ("a b", "a=20b"), ("$resource", "$resource"), ("a$", "a=24"),
     ("é", "=C3=A9"), ("a=b", "a=3Db"), (">", "=3E"), ("*", "=2A")],
)  # fmt: skip
def test_a_token_escapes_every_other_byte(name: str, expected: str) -> None:
    assert token(name) == expected
    assert untoken(expected) == name


@pytest.mark.parametrize(
    "text", ["a.b", "=2e", "=41", "=", "=2", "=GG", "a$", "=24x", "=C3", "=FF", "é", "*", ">", "a b"]
)
def test_what_no_name_has_as_its_token_is_none(text: str) -> None:
    assert untoken(text) is None
