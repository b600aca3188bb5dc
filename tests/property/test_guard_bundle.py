"""Chains that differ in one wish only: most of them get as far as the check of that wish, and none gets past it wider."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remit_schemas.bundle import verify_bundle
from remit_schemas.claims import labels_within
from remit_schemas.errors import Code, Refusal
from remit_schemas.grant import mint
from tests.property.test_bundle import ISSUER, KEY, KEYS, NOW, chain_of, hops

WISHES = ("exp", "max_depth", "budget", "authorization_details", "labels")


@pytest.mark.parametrize("wish", WISHES)
@settings(max_examples=100, deadline=None)
@given(chain=st.lists(hops, min_size=2, max_size=4, unique_by=lambda hop: hop["aud"]))
def test_a_chain_that_differs_in_one_wish_verifies_only_where_it_never_grew(
    wish: str, chain: list[dict[str, Any]]
) -> None:
    first = chain[0]
    claims = chain_of([{**first, "aud": hop["aud"], wish: hop[wish]} for hop in chain])
    try:
        grants = verify_bundle(
            [mint(each, KEY) for each in claims], KEYS, issuer=ISSUER, now=NOW, audience=claims[-1].aud
        )
    except Refusal as refusal:
        assert refusal.body.code is Code.GRANT_INVALID
        return
    root = grants[0]
    for grant in grants[1:]:
        assert grant.scope <= root.scope
        assert grant.claims.budget.within(root.claims.budget)
        assert grant.claims.exp <= root.claims.exp
        assert grant.claims.max_depth <= root.claims.max_depth
        assert labels_within(grant.claims.labels, root.claims.labels)
