"""Spans from records: the ids of record and grant, attributes from an allow-list, a caller's own context as a link."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remit_broker.core.spans import Link, SpanData, closed, delegated, refused, swept
from remit_schemas.budget import Budget
from remit_schemas.records import Finding
from tests.support import story
from tests.support.story import ROOT, TXN, Story, hop_id

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
HOP = hop_id(1)


def hop(outcome: str = "ok", **changes: Any) -> SpanData:
    """The span of one hop."""
    how = {key: changes.pop(key) for key in ("code", "rule", "reason") if key in changes}
    tale = Story()
    opening = story.opening(before := tale.fold, HOP, **changes)
    tale.add(opening)
    return closed(opening, story.closing(tale.fold, HOP, Budget(7, 8, 0), outcome, **how), before)  # type: ignore[arg-type]


def test_a_hops_span_has_the_ids_of_its_txn_and_hop_and_its_parents() -> None:
    span = hop()
    assert (span.trace, span.span, span.parent) == (TXN, HOP, ROOT)
    assert span.attributes["remit.grant.jti"] == f"{TXN}.{HOP}.1"
    assert span.error is None


def test_the_root_span_has_no_parent_and_the_id_of_the_opening() -> None:
    span = delegated(story.opened())
    assert (span.trace, span.span, span.parent) == (TXN, ROOT, None)
    assert span.name == "invoke_agent planner"


def test_what_a_txn_continues_is_a_link() -> None:
    assert delegated(story.opened(continues=f"{'c' * 32}.{'d' * 16}")).links == (Link("c" * 32, "d" * 16, "continues"),)


def test_the_call_that_people_approved_is_a_link() -> None:
    tale = Story()
    opening = story.opening(before := tale.fold, HOP)
    tale.add(opening)
    used = msgspec.structs.replace(opening, approval="e" * 16)
    span = closed(used, story.closing(tale.fold, HOP), before)
    assert span.links == (Link(TXN, "e" * 16, "approval"),)


def again(*outcomes: str, **changes: Any) -> SpanData:
    """The last of several identical calls, of which the others ended with ``outcomes``; ``changes`` are of the last one."""
    tale = Story()
    for number, outcome in enumerate(outcomes, 1):
        tale.open(hop_id(number))
        tale.close(hop_id(number), outcome=outcome)  # type: ignore[arg-type]
    last = hop_id(len(outcomes) + 1)
    opening = story.opening(before := tale.fold, last, **changes)
    tale.add(opening)
    return closed(opening, story.closing(tale.fold, last), before)


def test_the_same_call_that_failed_before_is_a_link() -> None:
    assert again("failed").links == (Link(TXN, hop_id(1), "retry"),)
    assert again("error", "failed").links == (Link(TXN, hop_id(2), "retry"),)


def test_a_call_that_went_well_or_was_another_one_is_not_made_again() -> None:
    assert again("ok").links == ()
    assert again("failed", args_digest="0" * 64).links == ()
    assert again("failed", resource="mcp/git/git_log").links == ()


def test_of_a_hop_that_was_parked_the_links_are_those_of_its_resumption() -> None:
    tale = Story()
    tale.add(story.opening(tale.fold, HOP, link=PARENT))
    tale.park(HOP)
    resumed = story.resuming(tale.fold, HOP)
    tale.add(resumed)
    resumed = msgspec.structs.replace(resumed, approval="e" * 16)
    span = swept(tale.fold.nodes[HOP], story.closing(tale.fold, HOP), tale.fold, resumed)
    assert (span.trace, span.span, span.parent) == (TXN, HOP, ROOT)
    assert span.links == (Link(TXN, "e" * 16, "approval"),)
    assert span.attributes["remit.resumed"] is True


def test_a_callers_own_context_is_a_link_and_neither_trace_nor_parent() -> None:
    span = hop(link=PARENT)
    assert (span.trace, span.parent) == (TXN, ROOT)
    assert span.links == (Link(TRACE, SPAN, "caller", 1),)


@pytest.mark.parametrize(
    "link",
    [
        "",
        "x",
        PARENT.upper(),
        PARENT + "\n",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}",
        None,
    ],
)
def test_a_context_that_is_none_is_no_link(link: str | None) -> None:
    assert hop(link=link).links == ()


@pytest.mark.parametrize(
    ("resource", "name", "operation"),
    [
        ("mcp/git/git_log", "execute_tool git_log", "execute_tool"),
        ("agent/researcher/brief", "invoke_agent researcher", "invoke_agent"),
    ],
)
def test_names_follow_the_conventions(resource: str, name: str, operation: str) -> None:
    span = hop(resource=resource)
    assert span.name == name
    assert span.attributes["gen_ai.operation.name"] == operation


@pytest.mark.parametrize(
    ("outcome", "code", "rule", "kind", "status"),
    [
        ("failed", None, "", "tool_error", "failed"),
        ("error", "TARGET_UNAVAILABLE", "dispatch.gone", "TARGET_UNAVAILABLE", "dispatch.gone"),
        ("cancelled", "CANCELLED", "", "CANCELLED", "cancelled"),
        ("unknown", None, "", "unknown", "unknown"),
    ],
)
def test_an_outcome_that_is_not_well_is_an_error_with_a_type(
    outcome: str, code: str | None, rule: str, kind: str, status: str
) -> None:
    span = hop(outcome, code=code, rule=rule)
    assert (span.attributes["error.type"], span.error) == (kind, status)


def test_reasons_and_arguments_never_reach_a_span() -> None:
    """Texts may hold what somebody sent; rule and code say enough."""
    span = hop("error", code="INTERNAL", rule="x", reason="the password was hunter2")
    assert "hunter2" not in repr(span)
    asked = refused(story.refused(message="hunter2", cause="hunter2", ask="hunter2"))
    assert "hunter2" not in repr(asked)


def test_findings_are_kinds_without_places() -> None:
    found = (Finding("secret.b", "/a"), Finding("secret.a", "/b"), Finding("secret.b", "/c"))
    assert hop(findings=found).attributes["remit.findings"] == ("secret.a", "secret.b")


def test_a_hop_that_was_swept_has_the_same_ids_as_if_it_had_ended_itself() -> None:
    tale = Story()
    opening = story.opening(before := tale.fold, HOP, resource="mcp/git/git_log")
    node = tale.add(opening).nodes[HOP]
    closing = story.closing(tale.fold, HOP, outcome="unknown")
    mine, theirs = swept(node, closing, tale.fold), closed(opening, closing, before)
    assert (mine.trace, mine.span, mine.parent, mine.name, mine.start) == (
        theirs.trace, theirs.span, theirs.parent, theirs.name, theirs.start,
    )  # fmt: skip
    assert set(mine.attributes) <= set(theirs.attributes)
    assert {key: theirs.attributes[key] for key in mine.attributes} == mine.attributes


def test_a_refusal_under_a_grant_is_a_child_of_the_callers_hop() -> None:
    span = refused(story.refused(HOP, txn=TXN, parent=ROOT, user="ann"))
    assert (span.trace, span.span, span.parent) == (TXN, HOP, ROOT)
    assert (span.error, span.attributes["remit.decision"]) == ("OUT_OF_SCOPE", "deny")


def test_a_refusal_without_a_grant_is_a_trace_of_its_own() -> None:
    span = refused(story.refused(HOP))
    assert (span.trace, span.parent) == (HOP * 2, None)
    assert "enduser.pseudo.id" not in span.attributes


@settings(deadline=None)
@given(st.text(max_size=80))
def test_whatever_a_caller_names_makes_a_span_with_a_bounded_name(resource: str) -> None:
    span = refused(story.refused(resource=resource))
    assert span.name.startswith(("execute_tool ", "invoke_agent ", "refused request"))
    assert not span.name.startswith("_INBOX")


def test_a_clock_that_went_back_gives_no_span_of_negative_length() -> None:
    tale = Story()
    opening = story.opening(tale.fold, HOP)
    tale.add(opening)
    earlier = story.closing(tale.fold, HOP, at="2026-11-03T14:02:10.000Z")
    span = closed(opening, earlier, tale.fold)
    assert span.end >= span.start


def test_every_attribute_is_one_that_this_file_names() -> None:
    """INVARIANT of the module: nothing a caller wrote can name an attribute."""
    known = ("remit.", "gen_ai.", "messaging.", "mcp.method.name", "enduser.pseudo.id", "error.type")
    spans = [
        hop("error", code="INTERNAL", labels=("a",), link=PARENT),
        delegated(story.opened()),
        refused(story.refused()),
    ]
    assert all(key.startswith(known) for span in spans for key in span.attributes)
