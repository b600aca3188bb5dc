"""Who an operator is, to the policies that are asked whether they may approve."""

from __future__ import annotations

import pytest

from remit_broker.core.issuers import ALL
from remit_broker.edges.http.approvals import approver
from remit_broker.edges.http.operators import Caller


@pytest.mark.parametrize(
    ("who", "auth", "user"), [("local:ann", "local", "ann"), ("open:corp:ann", "open", "corp:ann")]
)
def test_a_user_whose_name_has_a_colon_keeps_it(who: str, auth: str, user: str) -> None:
    """Else with four eyes the same person would be two."""
    found = approver(Caller(who=who, abilities=ALL), "default")
    assert (found.auth, found.user) == (auth, user)
