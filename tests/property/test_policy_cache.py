"""A decision from the cache is the decision that Cedar would make of the whole question."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cedarpy
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remit_broker.adapters import cedar as module
from remit_broker.adapters.cedar import CedarEngine, packaged
from remit_broker.core.arguments import Arguments
from remit_broker.core.policy import PolicyRequest
from remit_broker.core.question import ATTRIBUTES, facts_read, project
from remit_broker.core.registry import Annotations
from remit_schemas.budget import Budget
from remit_schemas.names import Resource
from tests.support.policies import MONDAY_9, asked, written

SEES = '!context.args_unprojected.contains("a")'
CONDITIONS = (
    "context.left_calls > 2",
    "context.left_usd_micros < 3 && context.left_tokens > 0",
    'context["left_tokens"] == 1',
    "context.now_hour >= 9 && context.now_hour < 17",
    "context.now_weekday > 5",
    "context.depth > 1",
    "context has left_calls && context.depth == 1",
    'context.actors.contains("a") || context.labels.contains("b")',
    'context.findings.containsAny(["a", "secret.b"]) && context.finding_classes.contains("secret")',
    'context.user.roles.contains("a") && context.user.name == "b"',
    'principal.tier == "a" || resource.tier == "b"',
    "if context.left_calls > 1 then context.now_hour > 12 else context.depth > 2",
    "[context.left_calls, 7].contains(1)",
    "{a: context.now_weekday}.a == 1",
    "context == context",
    "context.depth * 4611686018427387904 > 0",
    f'{SEES} && context.args.texts.hasTag("/a") && context.args.texts.getTag("/a") like "a*"',
    f'{SEES} && context.args.numbers.hasTag("/n") && context.args.numbers.getTag("/n") * 4611686018427387904 > 0',
    'context.args_unprojected.contains("")',
    'context.user in Role::"a" || context.user in Group::"b" || context.loops > 1',
    'context.client == "a" || context.environment == "b"',
)
ANY = 'action in [Action::"call", Action::"delegate", Action::"release", Action::"list"]'
SCOPES = (ANY, 'action == Action::"call"', 'action in [Action::"delegate", Action::"release"]')

policies = st.lists(
    st.tuples(st.sampled_from(("permit", "forbid")), st.sampled_from(SCOPES), st.sampled_from(CONDITIONS)),
    min_size=1,
    max_size=5,
)
word = st.sampled_from(("a", "b", "a,b", '"', "secret.b", ""))
words = st.lists(word, max_size=3).map(tuple)
small = st.integers(0, 3)
requests = st.builds(
    PolicyRequest,
    action=st.sampled_from(("call", "delegate", "release")),
    tenant=word,
    user=word,
    caller=word,
    caller_tier=word,
    resource=st.builds(Resource, st.sampled_from(("mcp", "agent")), word, word),
    target_tier=word,
    depth=small,
    left=st.builds(Budget, small, small, small),
    now=st.integers(0, 14 * 24 * 4).map(lambda quarters: MONDAY_9 + quarters * 900),
    annotations=st.builds(Annotations, read_only=st.booleans(), destructive=st.booleans()),
    roles=words,
    actors=words,
    tiers=words,
    findings=words,
    labels=words,
    loops=small,
    client=word,
    environment=word,
    args=st.builds(
        Arguments,
        texts=st.dictionaries(st.sampled_from(("/a", "/b")), word, max_size=2),
        numbers=st.dictionaries(st.just("/n"), small, max_size=1),
        unprojected=words,
    ),
)


def text_of(parts: list[tuple[str, str, str]]) -> str:
    always = '@id("always") @reason("always") permit (principal, action, resource);\n'
    return always + "\n".join(
        f'@id("p{i}") @reason("r{i}") {effect} (principal, {scope}, resource) when {{ {condition} }};'
        for i, (effect, scope, condition) in enumerate(parts)
    )


def asked_directly(text: str, request: PolicyRequest) -> tuple[bool, frozenset[str]]:
    """What Cedar says of the whole question, with nothing of this project between."""
    question = project(request)
    answer = cedarpy.is_authorized(
        {
            "principal": question.principal,
            "action": question.action,
            "resource": question.resource,
            "context": question.context,
        },
        text,
        question.entities,
        packaged("schema.cedarschema"),
    )
    if answer.diagnostics.errors:
        return False, frozenset({"policy.error"})
    return answer.allowed, frozenset(answer.diagnostics.id_annotations_by_reason.values())


@settings(deadline=None, max_examples=60)
@given(policies, st.lists(requests, min_size=2, max_size=12))
def test_a_cached_decision_is_the_one_that_would_be_made_now(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[str, str, str]], questions: list[PolicyRequest]
):
    text = text_of(parts)
    engine = CedarEngine.load(written(tmp_path_factory.mktemp("policies"), a=text))
    for request in [*questions, *reversed(questions)]:
        verdict = engine.decide(request)
        assert (verdict.allowed, frozenset(verdict.decision.rules)) == asked_directly(text, request)


@settings(max_examples=300)
@given(requests, requests)
def test_different_questions_have_different_keys(one: PolicyRequest, other: PolicyRequest):
    keys = {module._encoder.encode(one), module._encoder.encode(other)}
    assert (len(keys) == 1) is (one == other)


def test_equal_questions_are_decided_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    decided: list[Any] = []
    real = cedarpy.is_authorized

    def counted(*args: Any) -> Any:
        decided.append(args)
        return real(*args)

    monkeypatch.setattr(cedarpy, "is_authorized", counted)
    engine = CedarEngine.load(written(tmp_path, a=text_of([("forbid", "action", "context.depth > 5")])))
    for calls in range(10):
        # What no policy reads makes no difference.
        engine.decide(asked(left=Budget(calls, calls, calls), now=MONDAY_9 + calls * 100_000))
    assert len(decided) == 1
    engine.decide(asked(depth=3))
    assert len(decided) == 2


def reads(condition: str) -> frozenset[str]:
    text = f"permit (principal, action, resource) when {{ {condition} }};"
    return facts_read(json.loads(cedarpy.policies_to_json_str(text))["staticPolicies"].values())


@pytest.mark.parametrize(
    ("condition", "names"),
    [
        ("context.left_calls > 2", {"left_calls"}),
        ('context["now_hour"] > 2 && context.user.name == "x"', {"now_hour", "user"}),
        ("principal has tier", set()),
        ("principal == context.user", {"user"}),
        ("context has left_calls", set(ATTRIBUTES["context"])),
        ("{c: context}.c.left_calls > 1", set(ATTRIBUTES["context"])),
        ("(if true then context else context).left_calls > 1", set(ATTRIBUTES["context"])),
    ],
)
def test_the_facts_that_a_policy_reads_are_known(condition: str, names: set[str]):
    assert reads(condition) == names


def test_a_verdict_cannot_be_changed_by_who_receives_it(tmp_path: Path):
    verdict = CedarEngine.load(written(tmp_path, a=text_of([("permit", "action", "context.depth > 1")]))).decide(
        asked()
    )
    with pytest.raises(AttributeError):
        verdict.allowed = False  # type: ignore[misc]
    assert hash(verdict) == hash(msgspec.structs.replace(verdict))
