"""From any claims to a user, or to a refusal; never to somebody the claims do not name."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit_broker.core.claims_map import (
    MAX_BYTES,
    MAX_NAMES,
    BadMapping,
    ClaimsTable,
    Mapped,
    Source,
    Unmapped,
    check_mapping,
    map_claims,
    parse_path,
    written,
)
from remit_schemas.names import is_tenant

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "b", "roles", "sub"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
NAMES = st.text("abcxyz-", min_size=1, max_size=6)
# As often as not what an issuer does send: claims of which none fits would try refusals alone.
LISTED = st.lists(NAMES, max_size=4) | NAMES | JSON
CLAIMS = st.fixed_dictionaries(
    {"sub": st.just("ann") | JSON, "tid": st.just("1") | JSON},
    optional={
        "roles": LISTED, "groups": LISTED, "realm_access": st.fixed_dictionaries({"roles": LISTED}) | JSON,
        "_claim_names": st.just({"groups": "src1"}) | JSON, "hasgroups": st.booleans(),
    },
)  # fmt: skip
SOURCES = st.builds(
    Source,
    claim=st.sampled_from(["roles", "groups", "realm_access.roles", ("roles", "realm_access.roles")]),
    map=st.dictionaries(NAMES, NAMES | st.lists(NAMES, max_size=3).map(tuple), max_size=3),
    prefix=st.sampled_from(["", "corp:"]),
    required=st.booleans(),
)


@given(CLAIMS, SOURCES, SOURCES)
def test_any_claims_give_a_user_or_a_refusal(claims: dict[str, Any], roles: Source, groups: Source) -> None:
    """Whatever a token holds: plain names within bounds and a legal tenant, or a refusal that says why and what to do."""
    table = ClaimsTable(tenant=Source(claim="tid", map={"1": "acme"}), roles=roles, groups=groups)
    check_mapping(table)
    try:
        found = map_claims(table, claims)
    except Unmapped as no:
        assert no.why and no.ask and no.kind in ("claim", "overage")
        return
    assert found.user == claims["sub"] and found.user.isprintable()
    assert (found.tenant, claims["tid"]) == ("acme", "1") and is_tenant(found.tenant)
    for names, source in ((found.roles, roles), (found.groups, groups)):
        assert list(names) == sorted(set(names)) and len(names) <= MAX_NAMES
        assert all(name.startswith(source.prefix) and name.isprintable() for name in names)
        assert names or not source.required


@given(CLAIMS, st.dictionaries(NAMES, NAMES, min_size=1))
def test_with_a_map_nobody_gets_a_role_that_it_does_not_name(claims: dict[str, Any], table: dict[str, str]) -> None:
    """Unless it says so: what the issuer invents tomorrow is nothing here."""
    mapping = ClaimsTable(roles=Source(claim="roles", map=dict(table)))
    try:
        found = map_claims(mapping, claims)
    except Unmapped:
        return
    assert set(found.roles) <= set(table.values())


@given(
    st.lists(st.text(min_size=1, max_size=6).filter(lambda t: '"' not in t and "\\" not in t), min_size=1, max_size=4)
)
def test_a_path_is_read_as_it_was_written(segments: list[str]) -> None:
    path = tuple(segments)
    if len(path) == 1 and "://" in path[0]:
        return
    assert parse_path(written(path)) == path


@given(st.text(max_size=12))
def test_any_text_is_a_path_or_is_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert parse_path(written(parse_path(text))) == parse_path(text)


@given(st.lists(st.text(min_size=1, max_size=20), max_size=8))
def test_nested_and_flat_claims_give_the_same(roles: list[str]) -> None:
    def of(mapping: ClaimsTable, claims: dict[str, Any]) -> Mapped | str:
        try:
            return map_claims(mapping, {"sub": "ann", **claims})
        except Unmapped as no:
            return no.kind

    nested = of(ClaimsTable(roles='realm_access."my app".roles'), {"realm_access": {"my app": {"roles": roles}}})
    assert nested == of(ClaimsTable(roles="https://example.com/roles"), {"https://example.com/roles": roles})


def test_groups_that_the_issuer_left_out_are_not_none() -> None:
    """Entra ID in both its ways, and OIDC's distributed claims; also where some other roles are still there."""
    table = ClaimsTable(groups="groups", roles="roles")
    for said in ({"_claim_names": {"groups": "src1"}}, {"hasgroups": True}, {"hasgroups": "true"},
                 {"_claim_names": {"roles": "src1"}}, {"_claim_names": {"groups": "src1"}, "groups": ["one"]}):  # fmt: skip
        with pytest.raises(Unmapped) as caught:
            map_claims(table, {"sub": "ann", **said})
        assert caught.value.kind == "overage" and "overage" in caught.value.why and "Entra" in caught.value.ask
    assert map_claims(ClaimsTable(roles="roles"), {"sub": "ann", "hasgroups": True, "roles": ["x"]}).roles == ("x",)
    assert map_claims(table, {"sub": "ann", "hasgroups": False}).groups == ()


def test_more_groups_than_can_be_recorded_are_refused_and_not_cut_off() -> None:
    table = ClaimsTable(groups="groups")
    assert len(map_claims(table, {"sub": "ann", "groups": [f"g{n}" for n in range(MAX_NAMES)]}).groups) == MAX_NAMES
    for groups in ([f"g{n}" for n in range(MAX_NAMES + 1)], [f"{n:03}" * 40 for n in range(MAX_BYTES // 100)]):
        with pytest.raises(Unmapped) as caught:
            map_claims(table, {"sub": "ann", "groups": groups})
        assert caught.value.kind == "overage" and "map" in caught.value.ask


@pytest.mark.parametrize(
    ("claims", "names"),
    [
        ({}, "sub"),
        ({"sub": ""}, "sub"),
        ({"sub": 7}, "sub"),
        ({"sub": ["ann"]}, "sub"),
        ({"sub": {"ann": 1}}, "sub"),
        ({"sub": "a\u202enn"}, "sub"),
        ({"sub": " ann"}, "sub"),
        ({"sub": "x" * 257}, "sub"),
        ({"sub": "ann", "roles": 7}, "roles"),
        ({"sub": "ann", "roles": {"admin": True}}, "roles"),
        ({"sub": "ann", "roles": ["a", 7]}, "roles"),
        ({"sub": "ann", "roles": ["a\u0000"]}, "roles"),
    ],
)
def test_a_claim_of_another_type_refuses_and_is_named(claims: dict[str, Any], names: str) -> None:
    with pytest.raises(Unmapped) as caught:
        map_claims(ClaimsTable(roles="roles"), claims)
    assert names in caught.value.why


def test_what_a_map_does_not_name_is_kept_dropped_or_refused_as_it_says() -> None:
    claims = {"sub": "ann", "roles": "reader writer", "tid": "9"}

    def roles(**fields: Any) -> tuple[str, ...]:
        return map_claims(ClaimsTable(roles=Source(claim="roles", split=" ", **fields)), claims).roles

    table: dict[str, Any] = {"reader": ("viewer", "auditor")}
    assert roles() == ("reader", "writer")
    assert roles(map=table) == ("auditor", "viewer")
    assert roles(map=table, unmapped="keep") == ("auditor", "viewer", "writer")
    with pytest.raises(Unmapped, match="not in the map"):
        roles(map=table, unmapped="refuse")
    with pytest.raises(Unmapped, match="tid"):
        map_claims(ClaimsTable(tenant=Source(claim="tid", map={"1": "acme"})), claims)
    with pytest.raises(Unmapped, match="tid"):
        map_claims(ClaimsTable(tenant=Source(claim="tid", map={"1": "acme"}, unmapped="drop")), claims)


@pytest.mark.parametrize(
    ("table", "key"),
    [
        (ClaimsTable(user=Source()), "claims.user"),
        (ClaimsTable(user=Source(claim="sub", value="ann")), "claims.user"),
        (ClaimsTable(user=Source(claim="a", map={"x": ("y", "z")})), "claims.user"),
        (ClaimsTable(user=Source(claim="a", split=" ")), "claims.user"),
        (ClaimsTable(tenant=Source(value="Not A Tenant")), "claims.tenant"),
        (ClaimsTable(tenant=Source(claim="t", map={"x": "A B"})), "claims.tenant"),
        (ClaimsTable(roles=Source(claim="roles", unmapped="keep")), "claims.roles.unmapped"),
        (ClaimsTable(roles="a..b"), "claims.roles"),
        (ClaimsTable(roles='"unclosed'), "claims.roles"),
        (ClaimsTable(roles=Source(claim="roles", prefix="\n")), "claims.roles"),
    ],
)
def test_a_mapping_that_cannot_be_meant_is_refused(table: ClaimsTable, key: str) -> None:
    with pytest.raises(BadMapping) as caught:
        check_mapping(table)
    assert caught.value.key == key and caught.value.ask
