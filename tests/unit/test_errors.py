"""Refusals: the table is complete and sane, and what is private stays private."""

from __future__ import annotations

from http import HTTPStatus

import msgspec
import pytest

from remit_schemas.errors import SURFACES, Code, Effect, ErrorBody, Refusal, refusal

CONTRACT = """
    MALFORMED TOO_LARGE UNAUTHENTICATED GRANT_INVALID GRANT_EXPIRED GRANT_REVOKED GRANT_CLOSED
    OUT_OF_SCOPE DEPTH_EXCEEDED CYCLE UNKNOWN_TARGET TARGET_QUARANTINED ARGUMENTS_INVALID
    POLICY_DENIED CONTENT_DENIED APPROVAL_REQUIRED APPROVAL_INVALID BUDGET_EXCEEDED RATE_LIMITED
    CONFLICT DUPLICATE TARGET_UNAVAILABLE DEADLINE_EXCEEDED CANCELLED RESULT_DENIED RESULT_INVALID
    LEDGER_UNAVAILABLE INTERNAL
"""

CLIENT_CLOSED_REQUEST = 499
"""Not registered, but what servers in the field use for a request that its client cancelled."""


def test_the_codes_are_those_of_the_contract() -> None:
    assert [code.value for code in Code] == CONTRACT.split()
    assert all(code.name == code.value for code in Code)


def test_the_table_is_complete() -> None:
    assert set(SURFACES) == set(Code)


@pytest.mark.parametrize("code", list(Code))
def test_every_surface_has_a_fitting_value(code: Code) -> None:
    surface = SURFACES[code]
    assert surface.http == CLIENT_CLOSED_REQUEST or surface.http in {status.value for status in HTTPStatus}
    assert 400 <= surface.http <= 599
    assert surface.frame == "error"
    assert surface.exit in (1, 3)


@pytest.mark.parametrize("code", list(Code))
def test_json_rpc_codes_are_those_the_specification_reserves_for_errors(code: Code) -> None:
    # JSON-RPC 2.0 §5.1: five named ones, and -32099 to -32000 for servers.
    value = SURFACES[code].jsonrpc
    assert value in (-32700, -32600, -32601, -32602, -32603) or -32099 <= value <= -32000


def test_a_json_rpc_code_tells_the_code() -> None:
    assert len({surface.jsonrpc for surface in SURFACES.values()}) == len(Code)


def test_only_what_may_pass_by_itself_is_retryable() -> None:
    retryable = {code for code, surface in SURFACES.items() if surface.retryable}
    assert retryable == {Code.RATE_LIMITED, Code.TARGET_UNAVAILABLE, Code.LEDGER_UNAVAILABLE}
    assert all(SURFACES[code].http in (429, 503) for code in retryable)


def test_a_service_that_cannot_be_reached_has_its_own_exit_code() -> None:
    assert {code for code, surface in SURFACES.items() if surface.exit == 3} == {Code.LEDGER_UNAVAILABLE}


@pytest.mark.parametrize("effect", ["happened", "unknown"])
@pytest.mark.parametrize("code", list(Code))
def test_nothing_is_retryable_once_an_effect_may_have_happened(code: Code, effect: Effect) -> None:
    assert not refusal(code, "m", rule="r", effect=effect).body.retryable
    assert refusal(code, "m", rule="r").body.retryable == SURFACES[code].retryable


def test_the_cause_is_never_part_of_the_body_or_the_text() -> None:
    caught = refusal(Code.INTERNAL, "it failed", rule="r", cause="secret detail")
    assert caught.cause == "secret detail"
    assert b"secret" not in msgspec.json.encode(caught.body)
    assert "secret" not in str(caught)
    assert str(caught) == "INTERNAL: it failed"


def test_a_body_has_every_field_of_the_contract() -> None:
    body = msgspec.to_builtins(ErrorBody(code=Code.CYCLE, message="m"))
    assert body == {
        "code": "CYCLE", "message": "m", "rule": "", "ask": "", "retryable": False, "retry_after": None,
        "approval_url": None, "effect": "none", "txn": None, "hop": None, "approval": None,
    }  # fmt: skip
    assert msgspec.convert(body, ErrorBody) == ErrorBody(code=Code.CYCLE, message="m")


def test_a_refusal_carries_what_it_was_given() -> None:
    caught = refusal(
        Code.RATE_LIMITED, "slow down", rule="admit.rate", ask="wait", retry_after=1.5, approval_url="https://x.example"
    )
    assert isinstance(caught, Refusal)
    body = caught.body
    assert (body.message, body.rule, body.ask) == ("slow down", "admit.rate", "wait")
    assert (body.retry_after, body.approval_url, body.effect) == (1.5, "https://x.example", "none")
