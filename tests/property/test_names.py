"""Every legal name has exactly one token, and no token can mean anything else to NATS."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from remit_schemas.names import is_op, normalize, token, untoken

# Any Unicode text that has an encoding, and much of what NATS or the escape give a meaning to.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.text("aZ0_-=$.*> /2E3D", max_size=12)
OPS = TEXT.map(normalize).filter(is_op)
ALLOWED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-=")


@given(TEXT)
def test_a_name_is_read_back_from_its_token(name: str) -> None:
    assert untoken(token(name)) == name


@given(OPS, OPS)
def test_different_names_have_different_tokens(a: str, b: str) -> None:
    assert (token(a) == token(b)) == (a == b)


@given(TEXT)
def test_a_text_is_the_token_of_at_most_one_name(text: str) -> None:
    name = untoken(text)
    assert name is None or token(name) == text


@given(TEXT)
def test_no_token_holds_a_dot_a_wildcard_or_a_space(name: str) -> None:
    text = token(name)
    assert set(text[1:]) <= ALLOWED
    assert text[:1] == "$" or set(text[:1]) <= ALLOWED


@given(OPS)
def test_a_legal_name_is_its_own_normal_form_and_has_a_token(op: str) -> None:
    assert normalize(op) == op
    assert token(op)
