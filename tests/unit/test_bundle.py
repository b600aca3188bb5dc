"""A bundle is refused unless every grant in it was rightly narrowed from the one before."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from remit_schemas.budget import Budget
from remit_schemas.bundle import verify_bundle, verify_link
from remit_schemas.errors import Code, Refusal
from remit_schemas.grant import Actor, Claims, Grant, mint, parse, verify_ancestor
from remit_schemas.keys import KeySet, SigningKey
from remit_schemas.scope import Detail

KEY = SigningKey.from_seed(bytes(range(32)))
KEYS = KeySet([KEY.public])
ISSUER, NOW, TXN = "https://remit.example", 1_800_000_000, "4bf92f3577b34da6a3ce929d0e0e4736"
NAMES = ("planner", "researcher", "critic", "files", "mail")


def root(**changes: Any) -> Claims:
    claims = Claims(
        iss=ISSUER, sub="ann", tenant="default", aud=NAMES[0], iat=NOW, exp=NOW + 60, jti=f"{TXN}.{1:016x}.1", txn=TXN,
        depth=0, max_depth=8, rec="0" * 64, authorization_details=(Detail(resource="mcp/files/*"),),
        budget=Budget(100, 100, 10), labels=("pii", "web"),
    )  # fmt: skip
    return msgspec.structs.replace(claims, **changes)


def child_of(parent: Claims, **changes: Any) -> Claims:
    """A faithful child: everything the parent has, one deeper."""
    claims = msgspec.structs.replace(
        parent, aud=NAMES[parent.depth + 1], act=Actor(parent.aud, parent.act), depth=parent.depth + 1,
        par=parse(mint(parent, KEY)).digest, jti=f"{TXN}.{parent.depth + 2:016x}.1",
    )  # fmt: skip
    return msgspec.structs.replace(claims, **changes)


def family(length: int) -> list[Claims]:
    claims = [root()]
    while len(claims) < length:
        claims.append(child_of(claims[-1]))
    return claims


def verified(*claims: Claims, **how: Any) -> tuple[Grant, ...]:
    settings: dict[str, Any] = {"issuer": ISSUER, "now": NOW, "audience": claims[-1].aud} | how
    return verify_bundle([mint(each, KEY) for each in claims], KEYS, **settings)


def refused(*claims: Claims, **how: Any) -> str:
    with pytest.raises(Refusal) as caught:
        verified(*claims, **how)
    assert caught.value.body.code is Code.GRANT_INVALID
    assert caught.value.body.ask
    return caught.value.body.rule


def lone(claims: Claims) -> Grant:
    return verify_ancestor(parse(mint(claims, KEY)), KEYS, issuer=ISSUER, now=NOW)


def test_a_faithful_chain_verifies() -> None:
    for length in range(1, 5):
        claims = family(length)
        assert [grant.claims for grant in verified(*claims)] == claims
    assert verified(*family(4))[-1].chain == ("files", "critic", "researcher", "planner")


def test_a_narrower_child_verifies() -> None:
    child = child_of(
        root(), exp=NOW + 5, max_depth=1, budget=Budget(0, 0, 1), labels=(),
        authorization_details=(Detail(resource="mcp/files/read", args={"path": {"prefix": "docs/"}}),),
    )  # fmt: skip
    assert verified(root(), child)
    assert verified(root(), child_of(root(), authorization_details=()))


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"sub": "bob"}, "bundle.sub"),
        ({"tenant": "other"}, "bundle.tenant"),
        ({"authorization_details": (Detail(resource="mcp/**"),)}, "bundle.scope"),
        ({"authorization_details": (Detail(resource="mcp/files/*"), Detail(resource="mcp/mail/send"))}, "bundle.scope"),
        ({"budget": Budget(101, 100, 10)}, "bundle.budget"),
        ({"budget": Budget(100, 101, 10)}, "bundle.budget"),
        ({"budget": Budget(100, 100, 11)}, "bundle.budget"),
        ({"exp": NOW + 61}, "bundle.exp"),
        ({"max_depth": 9}, "bundle.max_depth"),
        ({"labels": ("*",)}, "bundle.labels"),
        ({"labels": ("pii", "web", "secret")}, "bundle.labels"),
        ({"par": "A" * 43}, "bundle.par"),
        ({"act": Actor("critic")}, "bundle.actor"),
        ({"jti": f"{TXN}.{1:016x}.2"}, "bundle.jti"),
        ({"txn": TXN[::-1], "jti": f"{TXN[::-1]}.{2:016x}.1"}, "bundle.txn"),
        ({"depth": 2, "act": Actor("planner", Actor("critic"))}, "bundle.act"),
    ],
    ids=repr,
)
def test_every_widening_is_refused(change: dict[str, Any], rule: str) -> None:
    assert refused(root(), child_of(root(), **change)) == rule


def test_arguments_cannot_be_loosened() -> None:
    held = root(authorization_details=(Detail(resource="mcp/files/read", args={"path": {"prefix": "docs/"}}),))
    for args in ({}, {"path": {"prefix": "doc"}}, {"path": {"any": True}}):
        child = child_of(held, authorization_details=(Detail(resource="mcp/files/read", args=args),))
        assert refused(held, child) == "bundle.scope"


def test_a_child_of_another_issuer_is_refused() -> None:
    with pytest.raises(Refusal) as caught:
        verify_link(
            lone(root()),
            verify_ancestor(
                parse(mint(child_of(root(), iss="https://b.example"), KEY)), KEYS, issuer="https://b.example", now=NOW
            ),
        )
    assert caught.value.body.rule == "bundle.iss"


def test_older_actors_cannot_be_rewritten() -> None:
    first, second, third = family(3)
    for act in (
        Actor("researcher", Actor("mail")),
        Actor("planner", Actor("planner")),
    ):
        assert refused(first, second, msgspec.structs.replace(third, act=act)) in ("bundle.act", "bundle.actor")
    shorter = msgspec.structs.replace(third, act=Actor("researcher"), depth=1)
    assert refused(first, second, shorter) == "bundle.act"


def test_a_chain_cannot_be_spliced() -> None:
    one, two = family(3), [root(budget=Budget(99, 99, 9))]
    two += [child_of(two[0])]
    assert refused(two[0], one[1], one[2]) == "bundle.par"
    assert refused(one[0], two[1]) == "bundle.par"
    assert refused(one[0], one[2]) == "bundle.par"  # a grant left out
    assert refused(one[1], one[2]) == "bundle.root"  # the root left out
    assert refused(one[1], one[0]) == "bundle.root"
    assert refused(one[0], one[0]) == "bundle.jti"
    assert refused(one[0], one[1], one[0]) == "bundle.par"


def test_the_first_grant_is_a_root() -> None:
    assert refused(family(2)[1]) == "bundle.root"


def test_two_grants_of_one_hop_are_refused_even_far_apart() -> None:
    first, second, third = family(3)
    again = msgspec.structs.replace(third, jti=f"{TXN}.{1:016x}.2")
    assert refused(first, second, again) == "bundle.jti"


def test_a_cycle_is_refused_unless_the_pair_is_allowed() -> None:
    first, second = family(2)
    back = child_of(second, aud="planner")
    assert refused(first, second, back) == "bundle.cycle"
    assert refused(first, second, back, allowed_cycles={("planner", "researcher")}) == "bundle.cycle"
    assert verified(first, second, back, allowed_cycles=frozenset({("researcher", "planner")}))
    assert refused(root(), child_of(root(), aud="planner")) == "bundle.cycle"


def test_the_leaf_is_for_the_audience_asked_about() -> None:
    assert refused(*family(3), audience="mail") == "grant.audience"
    assert refused(*family(3), audience="planner") == "grant.audience"


def test_every_grant_of_the_bundle_must_be_valid_now() -> None:
    claims = [root(exp=NOW + 20)]
    claims.append(child_of(claims[0], exp=NOW + 10))
    assert verified(*claims, now=NOW + 9)
    with pytest.raises(Refusal) as caught:
        verified(*claims, now=NOW + 10)
    assert caught.value.body.code is Code.GRANT_EXPIRED


def test_every_grant_of_the_bundle_must_be_signed_by_the_issuer() -> None:
    stranger = SigningKey.from_seed(b"\x02" * 32)
    first, second = family(2)
    for tokens in ([mint(first, stranger), mint(second, KEY)], [mint(first, KEY), mint(second, stranger)]):
        with pytest.raises(Refusal) as caught:
            verify_bundle(tokens, KEYS, issuer=ISSUER, now=NOW, audience="researcher")
        assert caught.value.body.rule == "grant.kid"


def test_size_is_checked_before_anything_is_parsed_and_an_empty_bundle_is_refused() -> None:
    with pytest.raises(Refusal) as caught:
        verify_bundle(["x" * 8192] * 8 + ["x"], KEYS, issuer=ISSUER, now=NOW, audience="planner")
    assert (caught.value.body.code, caught.value.body.rule) == (Code.TOO_LARGE, "bundle.size")
    with pytest.raises(Refusal) as caught:
        verify_bundle([], KEYS, issuer=ISSUER, now=NOW, audience="planner")
    assert caught.value.body.rule == "bundle.root"


def test_a_link_is_checked_on_its_own_too() -> None:
    first, second, third = (lone(claims) for claims in family(3))
    verify_link(first, second)
    verify_link(second, third)
    with pytest.raises(Refusal):
        verify_link(first, third)
    with pytest.raises(Refusal):
        verify_link(second, first)
