"""Whatever a chain of delegations does, what verifies is never wider than its root."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from remit_schemas import jws
from remit_schemas.budget import Budget
from remit_schemas.bundle import verify_bundle
from remit_schemas.claims import labels_within, meet_labels
from remit_schemas.errors import Code, Refusal
from remit_schemas.grant import Actor, Claims, mint, parse, verify
from remit_schemas.keys import KeySet, SigningKey
from remit_schemas.scope import Detail, Scope

KEY = SigningKey.from_seed(bytes(range(32)))
KEYS = KeySet([KEY.public])
ISSUER, NOW, TXN = "https://remit.example", 1_800_000_000, "4bf92f3577b34da6a3ce929d0e0e4736"

amounts = st.integers(0, 5)
budgets = st.builds(Budget, amounts, amounts, amounts)
details = st.builds(
    Detail,
    resource=st.sampled_from(["mcp/**", "mcp/files/*", "mcp/files/read", "mcp/*/read", "agent/critic/review"]),
    args=st.sampled_from(
        [{}, {"path": {"prefix": "docs/"}}, {"path": {"eq": "docs/a"}}, {"n": {"range": {"min": 1, "max": 5}}}]
    ),
)
scopes = st.lists(details, max_size=2).map(tuple)
labels = st.one_of(st.just(("*",)), st.sets(st.sampled_from(["pii", "web", "secret"])).map(lambda s: tuple(sorted(s))))
hops = st.fixed_dictionaries(
    {
        "aud": st.sampled_from([f"a{n}" for n in range(6)]),
        "exp": st.integers(NOW + 1, NOW + 5),
        "max_depth": st.integers(4, 6),
        "budget": budgets,
        "authorization_details": scopes,
        "labels": labels,
    }
)


def chain_of(wishes: list[dict[str, Any]]) -> list[Claims]:
    """A chain that is right in its lineage and takes everything else as wished, narrower or wider."""
    claims: list[Claims] = []
    for n, wish in enumerate(wishes):
        above = claims[-1] if claims else None
        claims.append(
            Claims(
                iss=ISSUER,
                sub="ann",
                tenant="default",
                iat=NOW,
                txn=TXN,
                jti=f"{TXN}.{n + 1:016x}.1",
                rec="0" * 64,
                depth=n,
                act=Actor(above.aud, above.act) if above else None,
                par=parse(mint(above, KEY)).digest if above else None,
                **wish,
            )
        )
    return claims


@settings(max_examples=300, deadline=None)
@given(st.lists(hops, min_size=1, max_size=4))
def test_what_verifies_never_grew(wishes: list[dict[str, Any]]) -> None:
    claims = chain_of(wishes)
    tokens = [mint(each, KEY) for each in claims]
    try:
        grants = verify_bundle(tokens, KEYS, issuer=ISSUER, now=NOW, audience=claims[-1].aud)
    except Refusal as refusal:
        assert refusal.body.code is Code.GRANT_INVALID
        assert refusal.body.rule.startswith("bundle.")
        return
    root = grants[0]
    for grant in grants:
        assert grant.scope <= root.scope
        assert grant.scope & root.scope == grant.scope
        assert grant.claims.budget.within(root.claims.budget)
        assert grant.claims.exp <= root.claims.exp
        assert grant.claims.max_depth <= root.claims.max_depth
        assert labels_within(grant.claims.labels, root.claims.labels)
        assert len(set(grant.chain)) == len(grant.chain)
        assert grant.claims.sub == root.claims.sub


@settings(max_examples=150, deadline=None)
@given(st.lists(hops, min_size=2, max_size=4, unique_by=lambda hop: hop["aud"]))
def test_the_meet_of_parent_and_wish_always_verifies(wishes: list[dict[str, Any]]) -> None:
    narrowed = [wishes[0]]
    for wish in wishes[1:]:
        above = narrowed[-1]
        held, asked = Scope.of(above["authorization_details"]), Scope.of(wish["authorization_details"])
        narrowed.append(
            {
                "aud": wish["aud"],
                "exp": min(wish["exp"], above["exp"]),
                "max_depth": min(wish["max_depth"], above["max_depth"]),
                "budget": wish["budget"].meet(above["budget"]),
                "authorization_details": (held & asked).details,
                "labels": meet_labels(wish["labels"], above["labels"]),
            }
        )
    claims = chain_of(narrowed)
    grants = verify_bundle([mint(c, KEY) for c in claims], KEYS, issuer=ISSUER, now=NOW, audience=claims[-1].aud)
    assert [grant.claims for grant in grants] == claims


@given(labels, labels, labels)
def test_the_meet_of_ceilings_is_a_lattice_meet(a: tuple[str, ...], b: tuple[str, ...], c: tuple[str, ...]) -> None:
    assert meet_labels(a, a) == tuple(sorted(a))
    assert meet_labels(a, b) == meet_labels(b, a)
    assert meet_labels(meet_labels(a, b), c) == meet_labels(a, meet_labels(b, c))
    assert labels_within(meet_labels(a, b), a)
    assert labels_within(meet_labels(a, b), b)
    assert labels_within(a, b) == (meet_labels(a, b) == tuple(sorted(a)))


TOKEN = mint(chain_of([{"aud": "a0", "exp": NOW + 5, "max_depth": 4, "budget": Budget(1, 1, 1), "labels": ("*",),
                        "authorization_details": (Detail(resource="mcp/**"),)}])[0], KEY)  # fmt: skip


@settings(max_examples=500)
@given(
    st.integers(0, len(TOKEN) - 1), st.characters(max_codepoint=0x17F), st.sampled_from(["replace", "insert", "delete"])
)
def test_no_edit_of_a_token_verifies(index: int, character: str, edit: str) -> None:
    end = index if edit == "insert" else index + 1
    edited = TOKEN[:index] + ("" if edit == "delete" else character) + TOKEN[end:]
    if edited == TOKEN:
        return
    try:
        verify(parse(edited), KEYS, issuer=ISSUER, audience="a0", now=NOW)
    except Refusal as refusal:
        assert refusal.body.code is Code.GRANT_INVALID
    else:
        raise AssertionError("an edited token verified")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda x: st.lists(x) | st.dictionaries(st.text(), x),
)


@settings(max_examples=500)
@given(st.text() | st.binary().map(lambda b: b.decode("latin-1")) | st.lists(st.text(), max_size=4).map(".".join))
def test_any_text_is_a_refusal_never_another_exception(text: str) -> None:
    try:
        parse(text)
    except Refusal:
        return
    raise AssertionError("noise parsed as a grant")


@settings(max_examples=300)
@given(st.sampled_from(sorted(msgspec.structs.asdict(parse(TOKEN).claims))), json_values)
def test_any_value_of_a_claim_is_verified_or_refused(claim: str, value: Any) -> None:
    payload = {**msgspec.to_builtins(parse(TOKEN).claims), claim: value}
    token = jws.sign(json.dumps(payload).encode(), "dlg+jwt", KEY)
    with contextlib.suppress(Refusal):
        verify(parse(token), KEYS, issuer=ISSUER, audience="a0", now=NOW)
