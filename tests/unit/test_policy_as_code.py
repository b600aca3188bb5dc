"""Policies as code: checking them, testing them, asking them of the past, writing the least one, and what would have permitted it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remit_broker.adapters.cedar import CedarEngine, Policies, packaged
from remit_broker.adapters.errors import ConfigError
from remit_broker.adapters.policy_cases import read_cases
from remit_broker.adapters.policy_check import checked
from remit_broker.cli.reasons import reasons
from remit_broker.core.findings import ABRIDGED
from remit_broker.core.history import MAX_FACTS, answered, facts_of, opening, past_of
from remit_broker.core.nearest import lifted, mentioned, ways
from remit_broker.core.replay import Past, replayed
from remit_broker.core.suggest import suggested
from remit_broker.core.what_if import Case, Outcome, WhatIf, failures
from remit_broker.starter import write_policies
from remit_schemas.budget import Budget
from remit_schemas.errors import Refusal
from remit_schemas.names import Resource
from remit_schemas.records import Facts
from tests.support.policies import DESTROYS, READS, TOOL, WRITES, asked, written

ALL = '@id("all") @reason("everything") permit (principal, action == Action::"call", resource);\n'
CALL = 'principal, action == Action::"call", resource'


# Checking


def found(folder: Path, **files: str) -> list[tuple[str, str, str]]:
    told = checked(written(folder, **files))
    assert told["ok"] is not any(one["level"] == "error" for one in told["findings"])
    assert all(one["ask"] for one in told["findings"])
    return [(one["where"].rpartition("/")[2], one["level"], one["what"]) for one in told["findings"]]


def test_everything_that_is_wrong_is_told_at_once_with_file_and_line(tmp_path: Path):
    told = found(
        tmp_path,
        a=ALL + f'\n@reason("x") permit ({CALL});\n@id("b") permit ({CALL});',
        b=f'@id("c") @reason("x") permit ({CALL}) when {{ resource.nope }};\npermit (',
    )
    assert [where for where, _, _ in told] == ["a.cedar:3", "a.cedar:4", "b.cedar:1", "b.cedar:2"]
    assert {level for _, level, _ in told} == {"error"}
    assert ["@id" in told[0][2], "@reason" in told[1][2], "nope" in told[2][2], "Cedar" in told[3][2]] == [True] * 4


@pytest.mark.parametrize(
    ("policy", "level", "says"),
    [
        (f'forbid ({CALL}) when {{ false }};', "error", "never decides"),
        (f'forbid ({CALL}) unless {{ true }};', "error", "never decides"),
        (f'forbid ({CALL}) when {{ context.user.name == "a" && context.depth > 1 && context.user.name == "b" }};', "error", "never"),
        (f'permit ({CALL}) when {{ context.depth > 2 }};', "warning", "changes nothing"),
        ('permit (principal == Agent::"x", action == Action::"call", resource in Server::"y");', "warning", "changes nothing"),
        ('permit (principal, action, resource);', "warning", "names no action"),
        (f'forbid ({CALL}) when {{ context.depth > 4 && context.depth < 4 }};', "error", "never decides"),
        (f'forbid ({CALL}) when {{ context.depth == 2 && 3 <= context.depth }};', "error", "never decides"),
        (f'forbid ({CALL}) when {{ resource.readOnly && !resource.readOnly }};', "error", "never decides"),
        (f'forbid ({CALL}) when {{ context.trusted }} unless {{ context.depth > 1 || context.trusted }};', "error", "never decides"),
    ],
)  # fmt: skip
def test_a_rule_that_never_decides_or_is_wider_than_it_looks_is_told(
    tmp_path: Path, policy: str, level: str, says: str
):
    told = found(tmp_path, a=ALL + f'@id("odd") @reason("r") {policy}')
    assert any(where == "a.cedar:2" and got == level and says in what for where, got, what in told), told


def test_a_permit_that_a_forbid_covers_never_permits(tmp_path: Path):
    told = found(tmp_path, a=ALL + f'@id("none") @reason("r") forbid ({CALL});')
    assert told == [("a.cedar:1", "error", f"it never permits: none at {tmp_path}/a.cedar:2 forbids all it permits")]


SHADOWS = [
    # what is said first, what holds only where that holds too
    ("forbid", "when { context.depth > 3 }", "when { context.depth > 4 && resource.readOnly }"),
    ("forbid", "when { context.depth > 3 }", "when { context.depth == 7 }"),
    ("forbid", "when { context.depth >= 4 }", "when { 3 < context.depth }"),
    ("forbid", "when { !(context.depth <= 3) }", "when { context.depth > 3 && context.trusted }"),
    ("forbid", "unless { context.trusted }", "unless { context.trusted || resource.readOnly }"),
    ("forbid", "when { !context.trusted }", "unless { context.trusted }  when { context.loops > 1 }"),
    ("permit", "when { context.depth < 9 }", 'when { context.depth < 9 && context.args.texts.hasTag("/a") }'),
]
LONELY = [
    ("forbid", "when { context.depth > 4 }", "when { context.depth > 3 }"),
    ("forbid", "when { context.depth > 3 && context.trusted }", "when { context.depth > 3 }"),
    ("forbid", "unless { context.trusted || resource.readOnly }", "unless { context.trusted }"),
    ("forbid", "when { context.trusted }", "unless { context.trusted }"),
    ("forbid", "when { context.depth > 3 || context.trusted }", "when { context.trusted }"),
    # A forbid that looks at an argument forbids as well where it cannot see it: /b, of which the first says nothing.
    (
        "forbid",
        'when { context.args.texts.hasTag("/a") }',
        'when { context.args.texts.hasTag("/a") && context.args.texts.hasTag("/b") }',
    ),
]


@pytest.mark.parametrize(
    ("effect", "first", "second", "shadowed"), [*((*one, True) for one in SHADOWS), *((*one, False) for one in LONELY)]
)
def test_a_rule_that_holds_only_where_another_one_does_changes_nothing(
    tmp_path: Path, effect: str, first: str, second: str, shadowed: bool
):
    rules = [f'@id("r{n}") @reason("r") {effect} ({CALL}) {when};\n' for n, when in enumerate((first, second))]
    told = found(tmp_path, a="".join(rules))
    assert (
        bool([what for where, _, what in told if where == "a.cedar:2" and "changes nothing: r0" in what]) is shadowed
    ), told


def test_a_permit_never_permits_where_a_forbid_holds_wherever_it_does(tmp_path: Path):
    told = found(
        tmp_path,
        a=f'@id("deep") @reason("r") permit ({CALL}) when {{ context.depth > 5 && resource.readOnly }};\n'
        f'@id("no") @reason("r") forbid ({CALL}) when {{ context.depth > 3 }};',
    )
    assert [(where, level) for where, level, what in told if "never permits: no" in what] == [("a.cedar:1", "error")]


@pytest.mark.parametrize(
    "policy",
    [
        f'permit ({CALL}) when {{ context.user.name == "a" || context.user.name == "b" }};',
        f'@redact("pii") permit ({CALL}) when {{ context.depth < 8 }};',
        f'forbid ({CALL}) when {{ context.depth > 4 }};',
        'permit (principal, action == Action::"delegate", resource);',
    ],
)  # fmt: skip
def test_a_rule_that_does_something_is_left_alone(tmp_path: Path, policy: str):
    shallow = ALL.replace("resource);", "resource) when { context.depth < 9 };")
    assert found(tmp_path, a=f'{shallow}@id("x") @reason("r") {policy}') == []


def test_the_starter_policies_and_their_cases_are_sound(tmp_path: Path):
    write_policies(tmp_path)
    told = checked(tmp_path)
    assert (told["ok"], told["findings"]) == (True, [])
    engine = CedarEngine.load(tmp_path)
    cases = read_cases(tmp_path)
    assert len(cases) >= 8
    assert [(case.name, why) for _, case in cases if (why := failures(case, engine.decide(case.question())))] == []


# Cases


def test_a_case_says_in_what_it_fails(tmp_path: Path):
    engine = CedarEngine.load(written(tmp_path, a=ALL))
    base: dict[str, Any] = {"name": "n", "agent": "a", "resource": "mcp/files/x"}
    good = Case(**base, expect="allow", rules=("all",), redact=())
    assert failures(good, engine.decide(good.question())) == []
    bad = Case(**base, expect="deny", rules=("other",), redact=("pii",), code="CONTENT_DENIED")
    why = failures(bad, engine.decide(bad.question()))
    assert [part for part in ("allow", "all", "pii", "CONTENT_DENIED") if any(part in one for one in why)] == [
        "allow", "all", "pii", "CONTENT_DENIED",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "x = 1",
        "[[case]]\nname = 'n'",
        "[[case]]\nname='n'\nagent='a'\nresource='mcp/a/b'\nexpect='maybe'",
        "[[case",
        "\0",
    ],
)
def test_a_file_of_cases_that_says_something_else_is_an_error(tmp_path: Path, text: str):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "own.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"own\.toml"):
        read_cases(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"resource": "nonsense"}, {"action": "fly"}, {"action": "delegate"}, {"resource": "agent/a/b", "action": "call"},
        {"now": "noon"}, {"left": "much"}, {"action": "approve"}, {"approver": "bob"},
    ],
)  # fmt: skip
def test_a_question_that_cannot_be_asked_is_refused(changes: dict[str, Any]):
    with pytest.raises((Refusal, ValueError)):
        WhatIf(**{"resource": "mcp/files/x", "agent": "a", **changes}).question()


def test_arguments_of_a_case_are_seen_as_they_are(tmp_path: Path):
    wish = WhatIf(
        resource="mcp/db/query", agent="a", args={"sql": "x", "n": 1, "to": ["a"], "in": {"f": True}, "odd": [1, "a"]},
        unprojected=("/y",),
    )  # fmt: skip
    seen = wish.question().args
    assert (seen.texts, seen.numbers, seen.text_sets, seen.flags) == (
        {"/sql": "x"},
        {"/n": 1},
        {"/to": ("a",)},
        {"/in/f": True},
    )
    assert seen.unprojected == ("/odd", "/y")


# What is kept of a question


def raw(past: Past, **changes: Any) -> dict[str, Any]:
    asked_ = past.question
    facts = msgspec.to_builtins(facts_of(asked_))
    return {
        "kind": "hop.refused", "tenant": asked_.tenant, "txn": past.txn, "hop": past.hop, "at": past.at, "caller": asked_.caller,
        "resource": str(asked_.resource), "findings": [{"kind": kind, "where": "", "count": 1} for kind in asked_.findings],
        "decision": {"effect": past.then, "rules": list(past.rules), "revision": "r"}, "stage": "authorize", "count": past.count,
        "facts": facts, **changes,
    }  # fmt: skip


def past(
    then: Outcome = "allow", rules: tuple[str, ...] = (), count: int = 1, hop: str = "a" * 16, **changes: Any
) -> Past:
    question = asked(**{"now": 1_790_586_000, **changes})
    return Past(
        seq=0,
        txn="t" * 32,
        hop=hop,
        at="2026-09-28T09:00:00.000Z",
        then=then,
        rules=rules,
        question=question,
        count=count,
    )


def test_a_question_can_be_asked_again_from_its_record():
    before = past(
        then="deny", rules=("no",), roles=("eng",), groups=("g",), tool_groups=("pay",), findings=("pii.email", "secret.x"),
        labels=("web",), loops=2, client="cli", environment="prod", annotations=DESTROYS, tiers=("a", "b"), count=3,
    )  # fmt: skip
    assert past_of(raw(before), "ann") == before
    facts = opening(facts_of(before.question), before.question.depth)
    assert facts is not None and (facts.depth, facts.labels) == (0, ())
    opened = raw(before, kind="hop.opened", depth=2, labels=["web"], facts=msgspec.to_builtins(facts))
    again = past_of(opened, "ann")
    assert again is not None and again.question == before.question and again.count == 1


def test_a_record_without_its_facts_is_left_out_and_not_guessed():
    assert past_of(raw(past(), facts=None), "ann") is None
    assert past_of(raw(past(), decision=None), "ann") is None


def test_what_is_kept_of_a_question_stays_small():
    many = tuple(f"{'g' * 100}{i}" for i in range(1000))
    kept = facts_of(asked(groups=many, roles=many))
    assert kept.partial
    assert len(msgspec.json.encode(kept)) < MAX_FACTS
    assert past_of(raw(past(), facts=msgspec.to_builtins(kept)), "ann") is None
    assert not {"args", "arguments"} & {*Facts.__struct_fields__}


def closed(opened: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The end of a hop that ``opened``."""
    return {
        **{key: opened[key] for key in ("tenant", "txn", "hop", "at")}, "kind": "hop.closed", "labels": opened["labels"],
        "findings": [], "decision": {"effect": "allow", "rules": ["out"], "revision": "r"}, "lowered": [], **changes,
    }  # fmt: skip


def opened(before: Past, **changes: Any) -> dict[str, Any]:
    budget = {"usd_micros": 1, "tokens": 2, "calls": 1}
    return raw(before, kind="hop.opened", depth=2, labels=["web"], budget=budget, **changes)


def test_what_was_decided_about_an_answer_can_be_asked_again():
    before = past("allow", labels=("web",), left=Budget(10, 10, 10), target_labels=("files",))
    start = opened(before, brings=["files"])
    end = closed(start, labels=["files", "web"], findings=[{"kind": "pii.email", "where": "", "count": 1}])
    again = answered(end, start, "ann")
    assert again is not None and again.other is None and (again.then, again.rules) == ("allow", ("out",))
    assert again.question == msgspec.structs.replace(
        before.question, action="release", labels=("files", "web"), findings=("pii.email",), left=Budget(9, 8, 9)
    )
    # What was found, or policy, may have added a label: it was asked about without it, or with it.
    more = answered(closed(start, labels=["files", "personal", "web"]), start, "ann")
    assert more is not None and more.other is not None
    assert (more.question.labels, more.other.labels) == (("files", "personal", "web"), ("files", "web"))
    assert answered(closed(start, decision=None), start, "ann") is None
    assert answered(closed(start, findings=[{"kind": ABRIDGED, "where": "", "count": 9}]), start, "ann") is None


def test_labels_of_the_target_are_asked_about_again():
    """Also of a call that was refused, whose record says them among the facts."""
    before = past("deny", labels=("customer:1",), target_labels=("customer:2",))
    assert past_of(raw(before), "ann") == before
    facts = opening(facts_of(before.question), before.question.depth)
    again = past_of(opened(before, brings=["customer:2"], lowered=["x"], facts=msgspec.to_builtins(facts)), "ann")
    assert again is not None and again.question.target_labels == ("customer:2",)
    assert again.question.labels == ("web", "x"), "policy is asked before an approval takes labels away"


# Replay


def test_answers_are_replayed_and_labels_in_between_are_not_guessed(tmp_path: Path):
    release = '@id("out") @reason("r") permit (principal, action == Action::"release", resource);'
    stop = '@id("no") @reason("r") forbid (principal, action == Action::"release", resource) when {{ {} }};'
    start = opened(past("allow", labels=("web",)))
    end = closed(start, labels=["personal", "web"], findings=[{"kind": "pii.email", "where": "", "count": 1}])
    found = answered(end, start, "ann")
    assert found is not None
    for when, told in (
        ('context.findings.contains("pii.email")', (0, 0, ("deny",))),
        ('context.labels.contains("web")', (0, 0, ("deny",))),
        ('context.labels.contains("personal")', (0, 1, ())),
        ('context.labels.contains("other")', (1, 0, ())),
    ):
        decide = Policies.read(written(tmp_path, a=release + stop.format(when))).decide
        report = replayed([found], decide, decide)
        assert report.answers == 1
        assert (report.same, report.unsure, tuple(one.becomes for one in report.changes)) == told, when


def test_replay_says_what_would_be_otherwise_for_whom_and_how_often(tmp_path: Path):
    candidate = ALL + f'@id("no-mail") @reason("r") forbid ({CALL} in Server::"mail");'
    mail = Resource("mcp", "mail", "send")
    pasts = [
        past("allow"),
        past("deny", ("old",), count=4),
        past("allow", resource=mail, user="ann", hop="b" * 16),
        past("allow", resource=mail, user="bob"),
        past("approve", annotations=DESTROYS),
    ]
    decide = Policies.read(written(tmp_path, a=candidate)).decide
    report = replayed(pasts, decide, decide)
    assert (report.calls, report.same, report.unsure) == (8, 1, 0)
    told = [(one.was, one.becomes, one.count, one.users, one.rules) for one in report.changes]
    assert told == [
        ("deny", "allow", 4, ("ann",), ("all",)),
        ("allow", "deny", 2, ("ann", "bob"), ("no-mail",)),
        ("approve", "allow", 1, ("ann",), ("all",)),
    ]
    assert report.changes[1].examples == (f"{'t' * 32}.{'b' * 16}", f"{'t' * 32}.{'a' * 16}")


@pytest.mark.parametrize(
    ("policy", "unsure"),
    [
        (
            f'@id("x") @reason("r") forbid ({CALL}) when {{ context.args.texts.hasTag("/sql") && context.depth == 2 }};',
            1,
        ),
        (
            f'@id("x") @reason("r") forbid ({CALL}) when {{ context.args.texts.hasTag("/sql") && context.depth == 9 }};',
            0,
        ),
        (f'@id("x") @reason("r") forbid ({CALL} in Server::"other") when {{ context.args.texts.hasTag("/sql") }};', 0),
        (f'@id("x") @reason("r") forbid ({CALL}) unless {{ context.args.texts.hasTag("/sql") }};', 1),
    ],
)
def test_replay_does_not_guess_at_arguments_that_were_not_kept(tmp_path: Path, policy: str, unsure: int):
    policies = Policies.read(written(tmp_path, a=ALL + policy))
    report = replayed([past("allow")], policies.assuming("forbid").decide, policies.assuming("permit").decide)
    assert (report.unsure, report.same) == (unsure, 1 - unsure)


def test_ten_thousand_decisions_are_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """How long it takes is printed and not judged: machines differ."""
    policies = Policies.read(written(tmp_path, a=packaged("default.cedar")))
    pasts = [
        past(
            "allow",
            user=f"u{i % 50}",
            resource=Resource("mcp", f"s{i % 20}", f"t{i % 100}"),
            depth=i % 8,
            annotations=READS,
        )
        for i in range(10_000)
    ]
    before = time.process_time()
    report = replayed(pasts, policies.decide, policies.decide)
    with capsys.disabled():
        print(f" 10,000 decisions replayed in {time.process_time() - before:.2f} s of processor time")
    assert (report.calls, report.same) == (10_000, 10_000)


# Suggesting

word = st.sampled_from(("ann", 'b"ob\\', "\u00e9\u2028x", "root"))
observed = st.lists(
    st.builds(
        past,
        then=st.sampled_from(("allow", "deny")),
        user=word,
        caller=st.sampled_from(("researcher", "planner")),
        resource=st.sampled_from((TOOL, Resource("mcp", "git", "log"))),
        findings=st.sampled_from(((), ("pii.email",))),
        labels=st.sampled_from(((), ("web",))),
        depth=st.integers(1, 3),
    ),
    min_size=1,
    max_size=5,
)


@settings(deadline=None, max_examples=40)
@given(observed)
def test_a_suggestion_permits_what_was_observed_and_nothing_wider(
    tmp_path_factory: pytest.TempPathFactory, pasts: list[Past]
):
    text = suggested(pasts)
    seen = [one.question for one in pasts if one.then == "allow"]
    assert bool(text) is bool(seen)
    if not seen:
        return
    folder = written(tmp_path_factory.mktemp("suggested"), a=text)
    told = checked(folder)
    assert [one for one in told["findings"] if one["level"] == "error"] == []
    decide = CedarEngine.load(folder).decide
    for question in seen:
        assert decide(question).allowed
        assert decide(msgspec.structs.replace(question, action="release", findings=())).allowed
        known = {(one.caller, one.resource, one.user) for one in seen}
        for changes in (
            {"user": "somebody else"}, {"tenant": "other"}, {"caller": "stranger"}, {"resource": Resource("mcp", "git", "push")},
            {"depth": 4}, {"labels": ("secret-plans",)}, {"findings": ("secret.npm_token",)}, {"tiers": ("untrusted",)},
            {"action": "detach"}, {"actors": ("intruder",)},
        ):  # fmt: skip
            assert not decide(msgspec.structs.replace(question, **changes)).allowed, changes
        for user in ("ann", "root"):
            if (question.caller, question.resource, user) not in known:
                assert not decide(msgspec.structs.replace(question, user=user)).allowed


# What would have permitted it


def why(folder: Path, policies: str, **changes: Any) -> tuple[list[str], tuple[str, ...]]:
    read = Policies.read(written(folder, a=policies))
    request = asked(**changes)
    known = mentioned(source.body for source in read.sources)
    return ways(request, read.decide, known), lifted(request, read.decide)


def test_the_smallest_change_is_found_by_trying(tmp_path: Path):
    starter = packaged("default.cedar")
    assert why(tmp_path, starter, findings=("secret.npm_token",)) == (
        ["without what was found of the kind secret"], ("no-secret-leaves",),
    )  # fmt: skip
    changes, lift = why(tmp_path, starter, annotations=WRITES, tiers=("standard", "untrusted"))
    assert "without an agent of the tier untrusted in the chain" in changes and "with a tool that only reads" in changes
    assert lift == ("untrusted-agents-only-read",)
    # Two things at once, where no single one is enough.
    changes, lift = why(tmp_path, starter, annotations=WRITES, tiers=("standard", "untrusted"), findings=("secret.x",))
    assert (
        "without what was found of the kind secret and without an agent of the tier untrusted in the chain" in changes
    )
    assert lift == ("no-secret-leaves", "untrusted-agents-only-read")


def test_what_is_refused_for_its_arguments_is_explained_by_nothing_else(tmp_path: Path):
    """They are in no record, so nobody can say which would do; but no role and no environment would have."""
    has = 'context.args.texts.hasTag("/p")'
    no = (
        f'@id("no-etc") @reason("r") forbid ({CALL}) when {{ {has} && context.args.texts.getTag("/p") like "/etc/*" }};'
    )
    shallow = f'@id("deep") @reason("r") forbid ({CALL}) when {{ {has} && context.depth > 1 }};'
    folder = written(tmp_path, a=ALL + no)
    refused = past("deny", ("no-etc",), depth=2)
    told = reasons({"asked": msgspec.to_builtins(refused), "records": [raw(refused)]}, folder)
    assert told["changes"] == ["with other arguments"] and told["lift"] == ["no-etc"]
    told = reasons(
        {"asked": msgspec.to_builtins(refused), "records": [raw(refused)]}, written(tmp_path, a=ALL + shallow)
    )
    assert told["changes"][0] == "with other arguments" and any("depth" in one for one in told["changes"][1:]), told


def test_a_role_that_a_policy_asks_for_is_named(tmp_path: Path):
    policy = f'@id("eng") @reason("r") permit ({CALL}) when {{ context.user in Role::"eng" && context.depth < 3 }};'
    assert why(tmp_path, policy)[0] == ["for a user with the role eng"]
    assert why(tmp_path, policy, depth=3)[0] == [
        "at depth 2 and for a user with the role eng",
        "at depth 1 and for a user with the role eng",
    ]


def test_where_nothing_that_could_be_otherwise_helps_nothing_is_said(tmp_path: Path):
    assert why(tmp_path, '@id("x") @reason("r") permit (principal, action == Action::"delegate", resource);') == (
        [],
        (),
    )
