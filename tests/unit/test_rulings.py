"""Observed policies and exceptions: they let through what was named, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from remit_broker.adapters.cedar import CedarEngine
from remit_broker.core.admin import AdminRecord, broken, follow, plain
from remit_broker.core.policy import Verdict
from remit_broker.core.revocations import Entry
from remit_broker.core.rulings import DEFAULT_DENY, Exempt
from remit_schemas.names import Resource
from tests.support.policies import MONDAY_9, TOOL, asked, written

CALL = 'principal, action == Action::"call", resource'
POLICIES = f"""
@id("all") @reason("all") permit ({CALL}) when {{ context.user.name != "nobody" }};
@id("no-web") @reason("no web") forbid ({CALL}) when {{ context.labels.contains("web") }};
@id("no-pii") @reason("no pii") forbid ({CALL}) when {{ context.finding_classes.contains("pii") }};
@id("ask") @reason("ask") @approve("really?") @redact("pii") permit ({CALL}) when {{ context.depth > 3 }};
"""
AT = "2026-09-28T09:00:00.000Z"


@pytest.fixture
def engine(tmp_path: Path) -> CedarEngine:
    return CedarEngine.load(written(tmp_path, a=POLICIES))


def observe(engine: CedarEngine, name: str, state: Any = "observed") -> None:
    engine.rulings.apply(Entry(kind="observe", name=name, who="op", at=AT, state=state))


def exempt(engine: CedarEngine, *rules: str, state: Any = "allowed", **changes: Any) -> None:
    usual = {
        "hop": "e" * 16, "tenant": "default", "action": "call", "user": "ann", "caller": "researcher", "resource": str(TOOL),
        "rules": rules, "until": MONDAY_9 + 3600,
    }  # fmt: skip
    detail = msgspec.json.encode(Exempt(**{**usual, **changes})).decode()
    engine.rulings.apply(Entry(kind="exception", name="e" * 16, who="op", at=AT, state=state, detail=detail))


def said(verdict: Verdict) -> tuple[bool, str, tuple[str, ...]]:
    return verdict.allowed, verdict.decision.effect, verdict.decision.rules


WEB = {"labels": ("web",)}
DENIED = (False, "deny", ("no-web",))


def test_what_is_only_observed_refuses_nothing_and_is_recorded(engine: CedarEngine):
    assert said(engine.decide(asked(**WEB))) == DENIED
    observe(engine, "policy no-web")
    verdict = engine.decide(asked(**WEB))
    assert said(verdict) == (True, "would_deny", ("no-web",))
    assert not verdict.approve and verdict.code is None
    # What it would not refuse is as it was, and so is what another one refuses as well.
    assert said(engine.decide(asked())) == (True, "allow", ("all",))
    both = engine.decide(asked(**WEB, findings=("pii.email",)))
    assert (both.allowed, set(both.decision.rules)) == (False, {"no-web", "no-pii"})
    observe(engine, "policy no-web", "enforced")
    assert said(engine.decide(asked(**WEB))) == DENIED


def test_of_an_observed_permit_nothing_is_demanded_and_others_still_demand(engine: CedarEngine):
    deep = {"depth": 4}
    assert engine.decide(asked(**deep)).approve == ("ask",)
    observe(engine, "policy ask")
    verdict = engine.decide(asked(**deep))
    assert said(verdict) == (True, "would_deny", ("ask",))
    assert (verdict.approve, verdict.redact) == ((), ())
    # An observed forbid beside an enforced demand: it is let through, and the demand stands.
    observe(engine, "policy ask", "enforced")
    observe(engine, "policy no-web")
    verdict = engine.decide(asked(**deep, **WEB))
    assert (verdict.decision.effect, verdict.decision.rules, verdict.approve) == ("would_deny", ("no-web",), ("ask",))


@pytest.mark.parametrize(
    ("changes", "rules"),
    [
        (WEB, ("no-web",)),
        ({"user": "nobody"}, (DEFAULT_DENY,)),
        ({"depth": 4}, ("all", "ask")),
        ({"user": 7}, ("policy.error",)),
    ],
)
def test_of_an_observed_server_nothing_is_refused_and_all_is_recorded(
    engine: CedarEngine, changes: dict[str, Any], rules: tuple[str, ...]
):
    observe(engine, "server files")
    if rules == ("policy.error",):
        assert not engine.decide(asked(**changes)).allowed, "what is no question at all is not let through"
        return
    verdict = engine.decide(asked(**changes))
    assert said(verdict) == (True, "would_deny", rules)
    assert (verdict.approve, verdict.redact, verdict.cap) == ((), (), None)
    # Another server's tools, and an agent of that name, are not observed.
    other = {**changes, "resource": Resource("mcp", "mail", "send")}
    assert engine.decide(asked(**other)).decision.effect != "would_deny"
    agent = {**changes, "action": "delegate", "resource": Resource("agent", "files", "x")}
    assert not engine.decide(asked(**agent)).allowed


def test_what_one_tenant_observes_others_enforce(engine: CedarEngine):
    for name in ("policy no-web", "server files"):
        engine.rulings.apply(Entry(kind="observe", name=name, who="op", at=AT, state="observed", tenant="acme"))
    assert engine.decide(asked(**WEB, tenant="acme")).decision.effect == "would_deny"
    assert said(engine.decide(asked(**WEB))) == DENIED


def test_an_exception_lifts_what_it_names_and_nothing_else(engine: CedarEngine):
    exempt(engine, "no-web")
    assert said(engine.decide(asked(**WEB))) == (True, "allow", ("all", f"exception.{'e' * 16}"))
    for changes in (
        {"user": "bob"}, {"caller": "planner"}, {"resource": Resource("mcp", "files", "other")}, {"tenant": "acme"},
        {"now": MONDAY_9 + 3600}, {"findings": ("pii.email",)},
    ):  # fmt: skip
        assert not engine.decide(asked(**{**WEB, **changes})).allowed, changes
    # Of two policies that forbid it, one alone was lifted; the refusal is theirs, and no error of ours.
    both = said(engine.decide(asked(**WEB, findings=("pii.email",))))
    assert both[:2] == DENIED[:2] and set(both[2]) == {"no-web", "no-pii"}
    # What a permit demands is demanded all the same.
    assert engine.decide(asked(**WEB, depth=4)).approve == ("ask",)
    exempt(engine, "no-web", state="withdrawn")
    assert said(engine.decide(asked(**WEB))) == DENIED


def test_an_exception_from_what_nothing_permits_ends_in_time(engine: CedarEngine):
    exempt(engine, DEFAULT_DENY, user="nobody")
    assert said(engine.decide(asked(user="nobody"))) == (True, "allow", (f"exception.{'e' * 16}",))
    assert not engine.decide(asked(user="nobody", now=MONDAY_9 + 3600)).allowed
    # It permits; it does not lift what is forbidden.
    assert not engine.decide(asked(user="nobody", **WEB)).allowed


def test_records_of_operators_from_before_there_were_rulings_still_hold():
    entry = Entry(kind="agent", name="bob", who="op", at=AT)
    first = follow(None, "default", entry)
    old = msgspec.to_builtins(first)
    del old["detail"]
    assert plain(first) == old
    second = follow(
        first, "default", Entry(kind="exception", name="e" * 16, who="op", at=AT, state="allowed", detail="{}")
    )
    read = [msgspec.convert(one, AdminRecord) for one in (old, plain(second))]
    assert broken(read) is None
    read[1] = msgspec.structs.replace(read[1], detail='{"rules":["all"]}')
    assert broken(read) == "#1: it was changed after it was sealed"
