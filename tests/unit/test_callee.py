"""What every callee checks before it works."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit_schemas.budget import Budget
from remit_schemas.callee import Seen, answer_subject, check_dispatch, control_subject
from remit_schemas.claims import Actor, Claims
from remit_schemas.envelope import Dispatch, Resumed
from remit_schemas.errors import Code, Refusal
from remit_schemas.grant import mint
from remit_schemas.keys import KeySet, SigningKey
from remit_schemas.names import Kind
from remit_schemas.scope import Detail

TXN, HOP, NOW = "a" * 32, "b" * 16, 1_800_000_000.0
KEY = SigningKey.from_seed(b"k" * 32)
KEYS = KeySet([KEY.public])


def dispatch(resource: str = "mcp/files/read", args: dict[str, Any] | None = None, **claims: Any) -> Dispatch:
    fields: dict[str, Any] = {
        "iss": "i", "sub": "ann", "tenant": "default", "aud": "files", "iat": int(NOW), "exp": int(NOW) + 60,
        "jti": f"{TXN}.{HOP}.1", "txn": TXN, "act": Actor("planner"), "depth": 1, "max_depth": 2, "par": "A" * 43,
        "rec": "0" * 64, "authorization_details": (Detail(resource),), "budget": Budget(0, 0, 1), "labels": (),
    }  # fmt: skip
    return Dispatch(
        txn=TXN, hop=HOP, replica="r1", resource=resource, grant=mint(Claims(**(fields | claims)), KEY), args=args or {},
        deadline=int(NOW * 1000) + 5000,
    )  # fmt: skip


def check(call: Dispatch, *, now: float = NOW, kind: Kind = "mcp", seen: Any = frozenset()) -> Any:
    return check_dispatch(call, me="files", kind=kind, keys=KEYS, issuer="i", now=now, seen=seen)


def refused(call: Dispatch, **facts: Any) -> tuple[Code, str]:
    with pytest.raises(Refusal) as caught:
        check(call, **facts)
    assert caught.value.body.effect == "none"
    return caught.value.body.code, caught.value.body.rule


def test_a_good_dispatch_gives_its_grant() -> None:
    grant = check(dispatch())
    assert grant.claims.sub == "ann"
    assert grant.chain == ("files", "planner")


def test_nothing_is_begun_at_or_after_the_deadline() -> None:
    call = dispatch()
    check(call, now=(call.deadline - 1) / 1000)
    assert refused(call, now=call.deadline / 1000) == (Code.DEADLINE_EXCEEDED, "dispatch.deadline")
    assert refused(call, now=float("nan"))[0] is Code.DEADLINE_EXCEEDED


def test_a_hop_is_taken_once() -> None:
    assert refused(dispatch(), seen={(TXN, HOP, 1)}) == (Code.DUPLICATE, "dispatch.duplicate")


def test_a_hop_that_was_parked_is_taken_once_more_for_each_input() -> None:
    seen = Seen()
    for n in (1, 2, 3):
        call = dispatch(jti=f"{TXN}.{HOP}.{n}")
        if n > 1:
            call = msgspec.structs.replace(call, resumed=Resumed(n=n, input="yes"))
        check(call, seen=seen)
        seen.take(call, NOW * 1000)
        assert refused(call, seen=seen) == (Code.DUPLICATE, "dispatch.duplicate")


@pytest.mark.parametrize("n", [1, 3])
def test_a_resumption_under_another_number_than_the_grants_is_refused(n: int) -> None:
    call = msgspec.structs.replace(dispatch(jti=f"{TXN}.{HOP}.2"), resumed=Resumed(n=n, input="yes"))
    assert refused(call) == (Code.GRANT_INVALID, "dispatch.grant")
    assert refused(msgspec.structs.replace(call, resumed=None)) == (Code.GRANT_INVALID, "dispatch.grant")


def test_a_grant_of_another_hop_is_refused() -> None:
    call = msgspec.structs.replace(dispatch(), hop="c" * 16)
    assert refused(call) == (Code.GRANT_INVALID, "dispatch.grant")


def test_a_dispatch_for_somebody_else_is_refused() -> None:
    assert refused(dispatch("mcp/mail/read"))[1] == "dispatch.resource"
    assert refused(dispatch("agent/files/read"))[1] == "dispatch.resource"
    assert refused(msgspec.structs.replace(dispatch(), v=2))[1] == "envelope.version"


def test_a_tool_is_held_to_the_arguments_of_its_grant() -> None:
    details = (Detail("mcp/files/read", {"path": {"prefix": "docs/"}}),)
    check(dispatch(args={"path": "docs/a"}, authorization_details=details))
    assert refused(dispatch(args={"path": "etc/a"}, authorization_details=details)) == (
        Code.OUT_OF_SCOPE,
        "dispatch.scope",
    )


def test_an_agents_grant_need_not_name_the_agent_itself() -> None:
    check(dispatch("agent/files/brief", authorization_details=(Detail("mcp/web/fetch"),)), kind="agent")


@pytest.mark.parametrize("field", ["txn", "hop", "replica"])
@pytest.mark.parametrize("value", ["", ">", "*", "a.b", "a b", "A" * 100])
def test_no_answer_goes_where_an_id_is_not_one_plain_token(field: str, value: str) -> None:
    assert answer_subject("files", msgspec.structs.replace(dispatch(), **{field: value})) is None


def test_subjects_of_answers_and_control() -> None:
    assert answer_subject("files", dispatch()) == f"res.files.r1.{TXN}.{HOP}"
    assert control_subject("files", "C" * 22) == f"_INBOX_files.{'C' * 22}.ctl.*.*"
    assert control_subject("files", "C" * 22, TXN, HOP) == f"_INBOX_files.{'C' * 22}.ctl.{TXN}.{HOP}"


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 10)), max_size=60))
def test_a_taken_hop_is_remembered_until_its_deadline_and_not_for_ever(steps: list[tuple[int, int]]) -> None:
    """Each step lets time pass and takes a hop with some time left."""
    seen, now, live = Seen(), 0, {}
    base = dispatch()
    for number, (left, passed) in enumerate(steps):
        now += passed
        call = msgspec.structs.replace(base, hop=f"{number + 1:016x}", deadline=now + left + 1)
        seen.take(call, now)
        live[(call.txn, call.hop, 1)] = call.deadline
        live = {key: deadline for key, deadline in live.items() if deadline > now}
        assert all(key in seen for key in live)
        assert len(seen) == len(live)
