"""Policy decides by the schema and the files, and whatever is doubtful is denied."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import cedarpy
import msgspec
import pytest
import rfc8785

from remit_broker.adapters.cedar import CedarEngine, packaged
from remit_broker.adapters.errors import ConfigError
from remit_broker.adapters.policy_watch import PolicyWatch
from remit_broker.core.arguments import Arguments
from remit_broker.core.obligations import Approval, Cap
from remit_broker.core.policy import PolicyRequest
from remit_broker.core.question import ATTRIBUTES, project, relevant
from remit_schemas.budget import Budget
from remit_schemas.errors import Code
from remit_schemas.names import Resource
from tests.support.policies import DESTROYS, MONDAY_9, READS, SKILL, TOOL, WRITES, asked, engine, written

PERMIT = '@id("all") @reason("everything") permit (principal, action, resource);'
DEFAULT = "default"


@pytest.fixture
def starter(tmp_path: Path) -> CedarEngine:
    return engine(tmp_path)


# The starter policies, as a table: what is asked, the deciding policy, and what comes of it.

GRANTED = "grant-covers-call"
SECRET = ("secret.npm_token",)


@pytest.mark.parametrize(
    ("changes", "outcome", "rules"),
    [
        ({"annotations": READS}, "allow", [GRANTED]),
        ({"annotations": WRITES}, "allow", [GRANTED]),
        ({"annotations": DESTROYS}, "approve", ["destructive-needs-approval"]),
        ({"action": "delegate", "resource": SKILL}, "allow", ["grant-covers-delegation"]),
        ({"action": "release"}, "redact", ["release-without-secrets"]),
        ({"action": "release", "resource": SKILL}, "redact", ["release-without-secrets"]),
        ({"action": "release", "findings": SECRET}, "redact", ["release-without-secrets"]),
        ({"findings": SECRET}, "CONTENT_DENIED", ["no-secret-leaves"]),
        ({"findings": SECRET, "annotations": DESTROYS}, "CONTENT_DENIED", ["no-secret-leaves"]),
        ({"action": "delegate", "resource": SKILL, "findings": SECRET}, "CONTENT_DENIED", ["no-secret-leaves"]),
        ({"action": "release", "findings": (*SECRET, "scan.unredactable")}, "CONTENT_DENIED", ["no-secret-as-a-name"]),
        ({"findings": ("scan.over_cap",)}, "CONTENT_DENIED", ["nothing-unscanned"]),
        ({"action": "release", "findings": ("scan.over_cap",)}, "CONTENT_DENIED", ["nothing-unscanned"]),
        ({"findings": ("pii.email",)}, "allow", [GRANTED]),
        ({"tiers": ("standard", "untrusted")}, "allow", [GRANTED]),
        ({"tiers": ("untrusted",), "annotations": WRITES}, "POLICY_DENIED", ["untrusted-agents-only-read"]),
        ({"tiers": ("unknown",), "annotations": DESTROYS}, "POLICY_DENIED", ["untrusted-agents-only-read"]),
        (
            {"tiers": ("untrusted",), "action": "delegate", "resource": SKILL},
            "POLICY_DENIED",
            ["untrusted-agents-do-not-delegate"],
        ),
        (
            {"tiers": ("untrusted",), "annotations": WRITES, "findings": SECRET},
            "POLICY_DENIED",
            ["no-secret-leaves", "untrusted-agents-only-read"],
        ),
    ],
)
def test_the_starter_policies(starter: CedarEngine, changes: dict[str, object], outcome: str, rules: list[str]):
    verdict = starter.decide(asked(**changes))
    assert list(verdict.decision.rules) == rules
    assert verdict.allowed is (verdict.decision.effect == "allow") is (outcome in ("allow", "approve", "redact"))
    assert verdict.code == (None if verdict.allowed else Code(outcome))
    assert verdict.approve == (tuple(rules) if outcome == "approve" else ())
    assert verdict.redact == (("secret",) if outcome == "redact" else ())
    assert verdict.reason
    assert verdict.decision.revision == starter.revision
    assert verdict.ask or outcome in ("allow", "redact")


# Deny by default


def test_what_nothing_permits_is_denied_without_a_rule(tmp_path: Path):
    policies = CedarEngine.load(written(tmp_path, a=PERMIT.replace("principal,", 'principal == Agent::"other",')))
    verdict = policies.decide(asked())
    assert (verdict.allowed, verdict.code, verdict.decision.rules) == (False, Code.POLICY_DENIED, ())
    assert policies.decide(asked(caller="other")).allowed


def test_a_forbid_wins_over_every_permit(tmp_path: Path):
    policies = engine(
        tmp_path, PERMIT, '@id("no") @reason("not today") @ask("come back") forbid (principal, action, resource);'
    )
    verdict = policies.decide(asked())
    assert not verdict.allowed
    assert (verdict.decision.rules, verdict.reason, verdict.ask) == (("no",), "not today", "come back")


# Passes validation; overflows when it is evaluated.
ERRS = '@id("errs") @reason("x") forbid (principal, action, resource) when { context.depth * 9223372036854775807 > 0 };'


def test_a_forbid_that_errs_denies(tmp_path: Path):
    policies = engine(tmp_path, ERRS)
    assert policies.decide(asked(depth=1)).decision.rules == ("errs",)
    verdict = policies.decide(asked(depth=2))
    assert (verdict.allowed, verdict.code, verdict.decision.rules) == (False, Code.POLICY_DENIED, ("policy.error",))
    assert "errs" in verdict.cause
    assert "errs" not in verdict.reason + verdict.ask


@pytest.mark.parametrize(
    "changes",
    [
        {"depth": None},
        {"depth": "2"},
        {"depth": True},
        {"depth": -1},
        {"depth": 2**70},
        {"depth": float("nan")},
        {"now": None},
        {"now": "noon"},
        {"now": 1.5},
        {"now": True},
        {"now": -1},
        {"user": None},
        {"user": 7},
        {"user": "\ud800"},
        {"user": {"__entity": {"type": "User", "id": "root"}}},
        {"caller_tier": None},
        {"target_tier": None},
        {"roles": None},
        {"roles": "admin"},
        {"roles": (1,)},
        {"findings": ({"__entity": {"type": "User", "id": "root"}},)},
        {"left": None},
        {"left": (1, 2, 3)},
        {"annotations": None},
        {"annotations": (True, False, False, False)},
        {"resource": None},
        {"resource": "mcp/files/read_file"},
        {"resource": Resource("mcp", "files", None)},  # type: ignore[arg-type]
        {"resource": Resource("web", "files", "x")},  # type: ignore[arg-type]
        {"resource": SKILL},
        {"action": "delegate"},
        {"action": "read"},
        {"action": None},
        {"actors": object()},
        {"labels": ("x" * 300_000,)},
    ],
    ids=repr,
)
def test_a_question_with_odd_values_is_denied_and_never_raises(tmp_path: Path, changes: dict[str, object]):
    folder = written(tmp_path, a=PERMIT)
    for policies in (CedarEngine.load(folder), CedarEngine.load(written(folder, b=READS_ALL))):
        verdict = policies.decide(asked(**changes))
        assert (verdict.allowed, verdict.code, verdict.decision.rules) == (False, Code.POLICY_DENIED, ("policy.error",))
        assert verdict.cause


READS_ALL = '@id("b") @reason("b") forbid (principal, action, resource) when { context.left_calls == 99 && context.now_hour == 99 };'


def test_something_that_is_no_question_is_denied(starter: CedarEngine):
    for odd in (None, 3, "call", object()):
        assert not starter.decide(odd).allowed  # type: ignore[arg-type]


def test_an_engine_that_fails_denies_and_the_failure_is_not_remembered(
    starter: CedarEngine, monkeypatch: pytest.MonkeyPatch
):
    def broken(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(cedarpy, "is_authorized", broken)
        assert starter.decide(asked()).decision.rules == ("policy.error",)
    assert starter.decide(asked()).allowed


HOSTILE = (
    'x" }; permit(principal,action,resource); //',
    "a::b",
    'User::"root"',
    '{"__entity":{"type":"User","id":"root"}}',
    "back\\slash\n\t\r",
    "\x00",
    "\u202eevil\u200b",
    "日本語 🙂",
    "é",
    "$__proto__",
    "*",
)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_only_a_name(tmp_path: Path, name: str):
    """Whatever a name is made of, it equals itself and nothing else."""
    only = PERMIT.replace("principal,", 'principal == Agent::"root",')
    root = (
        '@id("u") @reason("u") permit (principal, action, resource)'
        ' when { context.user == User::"root" || context.user.roles.contains("root") };'
    )
    tool = '@id("t") @reason("t") permit (principal, action, resource == Tool::"mcp/files/root");'
    named = (
        '@id("n") @reason("n") permit (principal, action == Action::"call", resource) when { context.labels == [principal.name]'
        " && principal.name == context.user.name && resource.name == principal.name };"
    )
    policies = CedarEngine.load(written(tmp_path, a="\n".join((only, root, tool, named))))
    verdict = policies.decide(
        asked(
            user=name,
            caller=name,
            caller_tier=name,
            roles=(name,),
            resource=Resource("mcp", name, name),
            labels=(name,),
        )
    )
    assert verdict.decision.rules == ("n",)


# What policies can speak of

EVERY_BAG = Arguments(
    texts={"/path": "docs/a.md"},
    numbers={"/limit": 5},
    flags={"/force": True},
    text_sets={"/to": ("ann", "bob")},
    number_sets={"/ids": (1, 2)},
    flag_sets={"/bits": (True,)},
    unprojected=("/rate",),
)


def test_the_projection_has_exactly_what_the_schema_declares():
    schema = cedarpy.Schema.from_str(packaged("schema.cedarschema"))
    seen: dict[str, tuple[str, ...]] = {}
    for request in (
        asked(args=EVERY_BAG),
        asked(action="delegate", resource=SKILL),
        asked(action="approve", approver="bob"),
    ):
        question = project(request)
        cedarpy.Entities.from_json_str(msgspec.json.encode(question.entities).decode(), schema)
        seen["context"] = tuple(sorted(question.context))
        seen["context.args"] = tuple(sorted(question.context["args"]))
        seen.update({entity["uid"]["type"]: tuple(sorted(entity["attrs"])) for entity in question.entities})
    bags = {name: seen.pop(name) for name in ("Texts", "Numbers", "Flags", "TextSets", "NumberSets", "FlagSets")}
    assert set(bags.values()) == {()}
    assert seen == ATTRIBUTES


@pytest.mark.parametrize(
    "condition",
    [
        'principal == Agent::"researcher" && principal.name == "researcher" && principal.tier == "standard"',
        'resource == Tool::"mcp/files/read_file" && resource in Server::"files"',
        'resource.name like "read_*" && resource.server == "files" && resource.tier == "gold"',
        "resource.readOnly && !resource.destructive && resource.openWorld && !resource.idempotent",
        'context.user == User::"ann" && context.user.name == "ann" && context.user.tenant == "default"',
        'context.user.roles.contains("eng") && !context.user.roles.contains("root")',
        'context.depth == 2 && context.actors.containsAll(["planner", "researcher"]) && context.tiers == ["standard"]',
        'context.findings == ["pii.email", "scan.x"] && context.finding_classes == ["scan", "pii"]',
        'context.labels.contains("web")',
        "context.left_usd_micros == 500000 && context.left_tokens == 1000 && context.left_calls == 12",
        "context.now_hour == 9 && context.now_weekday == 1",
        'context.user in Role::"eng" && context.user in Group::"berlin" && context.user.groups == ["berlin"]',
        'principal in Tier::"standard" && resource in ToolGroup::"payments" && resource.groups.contains("payments")',
        'context.loops == 1 && context.client == "cli" && context.environment == "production"',
        'context.args.texts.hasTag("/path") && context.args.texts.getTag("/path") like "docs/*"',
        'context.args.numbers.hasTag("/limit") && context.args.numbers.getTag("/limit") < 6',
        'context.args.flags.hasTag("/force") && context.args.flags.getTag("/force")',
        'context.args.text_sets.hasTag("/to") && ["ann", "bob", "cy"].containsAll(context.args.text_sets.getTag("/to"))',
        'context.args.number_sets.hasTag("/ids") && context.args.number_sets.getTag("/ids").contains(2)',
        'context.args.flag_sets.hasTag("/bits") && context.args.flag_sets.getTag("/bits") == [true]',
        'context.args_unprojected == ["/rate"] && !context.args.texts.hasTag("/rate")',
    ],
)
def test_each_fact_reaches_policy(tmp_path: Path, condition: str):
    policy = f'@id("a") @reason("a") permit (principal, action == Action::"call", resource) when {{ {condition} }};'
    verdict = CedarEngine.load(written(tmp_path, a=policy)).decide(
        asked(
            now=MONDAY_9 + 3599,
            roles=("eng",),
            findings=("pii.email", "scan.x"),
            labels=("web",),
            target_tier="gold",
            groups=("berlin",),
            tool_groups=("payments",),
            loops=1,
            client="cli",
            environment="production",
            args=EVERY_BAG,
        )
    )
    assert verdict.decision.rules == ("a",)


def test_an_argument_that_may_be_missing_must_be_asked_for_first(tmp_path: Path):
    policy = '@id("a") @reason("a") forbid (principal, action, resource) when {{ {} }};'
    with pytest.raises(ConfigError, match="unable to guarantee safety of access to tag"):
        CedarEngine.load(written(tmp_path, a=policy.format('context.args.texts.getTag("/path") == "x"')))
    guarded = 'context.args.texts.hasTag("/path") && context.args.texts.getTag("/path") == "x"'
    policies = CedarEngine.load(written(tmp_path, a=policy.format(guarded) + PERMIT))
    assert policies.decide(asked()).allowed
    assert policies.decide(asked(args=EVERY_BAG)).allowed
    assert not policies.decide(asked(args=Arguments(texts={"/path": "x"}))).allowed
    with pytest.raises(ConfigError, match=r"expected (String|Long) but saw (Long|String)"):
        CedarEngine.load(written(tmp_path, a=policy.format(guarded.replace('"x"', "1").replace("==", "<"))))


def test_approving_is_asked_about_the_person_who_decides(tmp_path: Path):
    policy = (
        '@id("a") @reason("a") permit (principal in Role::"approver", action == Action::"approve", resource in Server::"files")'
        " unless { principal == context.user };"
    )
    policies = CedarEngine.load(written(tmp_path, a=policy))
    by = {"action": "approve", "approver": "bob", "approver_roles": ("approver",), "approver_groups": ("ops",)}
    assert policies.decide(asked(**by)).allowed
    assert not policies.decide(asked(**by, user="bob")).allowed
    assert not policies.decide(asked(**{**by, "approver_roles": ()}, roles=("approver",))).allowed
    # What an agent may do is another question.
    assert not policies.decide(asked(action="call")).allowed


def test_a_skill_belongs_to_its_agent(tmp_path: Path):
    policy = (
        '@id("a") @reason("a") permit (principal, action == Action::"delegate", resource in Agent::"critic")'
        ' when { resource.name == "review" && resource.agent == "critic" && resource.tier == "gold" && principal.tier == "low" };'
    )
    policies = CedarEngine.load(written(tmp_path, a=policy))
    question = {"action": "delegate", "resource": SKILL, "target_tier": "gold", "caller_tier": "low"}
    assert policies.decide(asked(**question)).allowed
    assert not policies.decide(asked(**{**question, "resource": Resource("agent", "other", "review")})).allowed
    # An agent that calls itself is still the caller it is.
    assert policies.decide(asked(**question, caller="critic")).allowed


def test_no_argument_and_no_result_reaches_policy_as_it_was_sent():
    assert {"arguments", "result", "value"}.isdisjoint(PolicyRequest.__struct_fields__)
    with pytest.raises(TypeError):
        relevant(asked(args={"path": {"__entity": {"type": "User", "id": "root"}}}), frozenset())


# Obligations


def test_obligations_of_all_deciding_permits_add_up(tmp_path: Path):
    policies = engine(
        tmp_path,
        '@id("zz-ask") @reason("costly") @ask("ask ann") @approve("cost") permit (principal, action == Action::"call", resource);',
        '@id("aa-clean") @reason("clean") @redact("secret") permit (principal, action == Action::"call", resource);',
    )
    verdict = policies.decide(asked())
    assert verdict.decision.rules == ("aa-clean", GRANTED, "zz-ask")
    assert (verdict.approve, verdict.redact) == (("zz-ask",), ("secret",))
    assert (verdict.reason, verdict.ask) == ("costly", "ask ann")


def test_each_obligation_is_carried_with_what_it_says(tmp_path: Path):
    call = 'permit (principal, action == Action::"call", resource);'
    policies = engine(
        tmp_path,
        f'@id("two") @reason("r") @approve("move money; role=finance; count=2; four-eyes; ttl=15m") {call}',
        f'@id("cheap") @reason("r") @cap("usd=0.05,calls=3") {call}',
        f'@id("quick") @reason("r") @cap("ttl=2m, calls=2") @label("money,customer.acme") {call}',
    )
    verdict = policies.decide(asked())
    assert verdict.approvals == (
        Approval(policy="two", text="move money", count=2, role="finance", four_eyes=True, ttl=900),
    )
    assert verdict.cap == Cap(usd_micros=50_000, calls=2, seconds=120)
    assert verdict.cap.of(Budget(60_000, 7, 1)) == Budget(50_000, 7, 1)
    assert verdict.label == ("customer.acme", "money")


# Loading: the error names file, line and policy, and says what is allowed.

CALL = 'permit (principal, action == Action::"call", resource);'
GOOD = PERMIT + "\n// a comment; with a semicolon\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("permit (principal, action, resource)", (":3:", "not a Cedar policy")),
        ("permit (principal, action, resource;", (":3:", "not a Cedar policy")),
        ("\n;", (":4:", "not a Cedar policy")),
        ("permit (principal, action, resource);", (":3:", "without an @id")),
        ('@id("A b") permit (principal, action, resource);', (":3:", "'A b'", "a-z")),
        ('@id("policy.error") @reason("x") permit (principal, action, resource);', (":3:", "'policy.error'")),
        ('@id("x")\npermit (principal, action, resource);', (":3:", "'x'", "@reason")),
        ('@id("x") @reason("") permit (principal, action, resource);', (":3:", "'x'", "@reason")),
        ('@id("x") @reason("y") @approve permit (principal, action == Action::"call", resource);', ("@approve", "no text")),
        ('@id("x") @reason("y") @aprove("z") permit (principal, action, resource);', ("@aprove", "known are @id")),
        ('@id("x") @reason("y") @code("NOPE") forbid (principal, action, resource);', ("'NOPE'", "CONTENT_DENIED")),
        ('@id("x") @reason("y") @code("POLICY_DENIED") permit (principal, action, resource);', ("@code", "permit")),
        ('@id("x") @reason("y") @approve("z") forbid (principal, action, resource);', ("@approve", "forbid")),
        ('@id("x") @reason("y") @redact("secret") forbid (principal, action, resource);', ("@redact", "forbid")),
        ('@id("x") @reason("y") @redact("piii") permit (principal, action, resource);', ("'piii'", "allowed: hidden")),
        ('@id("x") @reason("y") @approve("z") permit (principal, action, resource);', ("approval of an approval",)),
        ('@id("x") @reason("y") @cap("calls=2") permit (principal, action == Action::"list", resource);', ("caps a listing",)),
        ('@id("x") @reason("y") @cap("calls=0") permit (principal, action == Action::"call", resource);', ("'calls=0' caps nothing",)),
        ('@id("x") @reason("y") @cap("calls=2,calls=3") permit (principal, action == Action::"call", resource);', ("calls=3",)),
        ('@id("x") @reason("y") @cap("usd=1e3") permit (principal, action == Action::"call", resource);', ("usd=1e3",)),
        ('@id("x") @reason("y") @label("Web Content") ' + CALL, ("'Web Content' is no label",)),
        ('@id("x") @reason("y") @approve("z; count=0") permit (principal, action == Action::"call", resource);', ("'0' is no number",)),
        ('@id("x") @reason("y") @approve("z; by=ann") ' + CALL, ("'by=ann'", "role=security")),
        ('@id("x") @reason("y") @approve("; count=2") ' + CALL, ("what is to be approved",)),
        ('@id("x") @reason("y") @approve("z; ttl=soon") ' + CALL, ("'soon' is no time",)),
        ('@id("x") @reason("y") @approve("z") permit (principal, action == Action::"release", resource);', ("approval of an answer",)),
        ('@id("x") @reason("y") permit (principal == ?principal, action, resource);', ("templates",)),
        (
            '@id("x") @reason("y") permit (principal, action, resource) when { context.argz };',
            ("'x'", "`argz`", "context has actors, args"),
        ),
        (
            '@id("x") @reason("y") permit (principal, action == Action::"call", resource) when { resource.destructve };',
            ("'x'", "destructve", "Tool has destructive"),
        ),
        ('@id("x") @reason("y") permit (principal, action == Action::"read", resource);', ("'x'", "call, delegate, detach, release")),
        ('@id("x") @reason("y") permit (principal == User::"ann", action == Action::"call", resource);', ("'x'", "as principal")),
        ('@id("x") @reason("y") permit (principal, action, resource) when { context.depth == "2" };', ("'x'", "docs/policy.md")),
        ('// one\n@id("all") @reason("y") permit (principal, action, resource);', (":4:", "'all' is taken", "bad.cedar:1")),
    ],
)  # fmt: skip
def test_a_bad_policy_is_named_with_its_place_and_what_is_allowed(tmp_path: Path, text: str, says: tuple[str, ...]):
    with pytest.raises(ConfigError) as no:
        CedarEngine.load(written(tmp_path, bad=GOOD + text))
    assert "bad.cedar:" in str(no.value)
    for part in says:
        assert part in str(no.value)
    assert no.value.ask


def test_ids_are_unique_across_files(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"b\.cedar:1: the id 'all' is taken by the policy at .*a\.cedar:1"):
        CedarEngine.load(written(tmp_path, a=PERMIT, b=PERMIT))


def folders(folder: Path, **files: str) -> Path:
    for path, text in files.items():
        file = folder / path.replace("__", "/") / "own.cedar"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("place", "changes"),
    [
        ("tenant__acme", {"tenant": "acme"}),
        ("server__files", {"tenant": "acme"}),
        ("server__files", {"tenant": "other", "action": "release"}),
    ],
)
def test_a_policy_in_a_folder_speaks_of_nobody_elses_requests(tmp_path: Path, place: str, changes: dict[str, str]):
    nobody = PERMIT.replace("principal,", 'principal == Agent::"nobody",')
    policies = CedarEngine.load(folders(written(tmp_path, a=nobody), **{place: PERMIT.replace('"all"', '"theirs"')}))
    assert policies.decide(asked(**changes)).decision.rules == ("theirs",)
    other = {**changes, "tenant": "beta", "resource": Resource("mcp", "mail", "send")}
    assert not policies.decide(asked(**other)).allowed
    # An agent of the server's name is no server.
    skill = {**other, "action": "delegate", "resource": Resource("agent", "files", "send")}
    assert not policies.decide(asked(**skill)).allowed
    # A forbid there is no more about others than a permit.
    forbids = folders(
        written(tmp_path, a=PERMIT), **{place: '@id("no") @reason("no") forbid (principal, action, resource);'}
    )
    policies = CedarEngine.load(forbids)
    assert not policies.decide(asked(**changes)).allowed
    assert policies.decide(asked(**other)).allowed


@pytest.mark.parametrize("place", ["servers__files", "tenant", "tenant__acme__deep", "server__Files"])
def test_a_policy_in_a_folder_that_nobody_reads_is_an_error(tmp_path: Path, place: str):
    folder = tmp_path / "policies"
    folder.mkdir()
    with pytest.raises(ConfigError, match="in no folder that policies are read from"):
        CedarEngine.load(folders(written(folder, a=PERMIT), **{place: PERMIT}))


def test_a_folder_without_policies_is_an_error(tmp_path: Path):
    with pytest.raises(ConfigError, match="no policy folder"):
        CedarEngine.load(tmp_path / "none")
    with pytest.raises(ConfigError, match="has no policies"):
        CedarEngine.load(tmp_path)
    with pytest.raises(ConfigError, match="hold no policies"):
        CedarEngine.load(written(tmp_path, a="// only a comment\n"))
    (tmp_path / "a.cedar").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="cannot be read"):
        CedarEngine.load(tmp_path)


def test_strings_and_comments_may_hold_semicolons_and_quotes(tmp_path: Path):
    text = '// it\'s; "so\n@id("a") // ;\n@reason("semi; \\"colon\\" // no") permit (principal, action, resource);'
    assert CedarEngine.load(written(tmp_path, a=text)).decide(asked()).reason == 'semi; "colon" // no'


def test_the_revision_is_the_digest_of_names_and_texts(tmp_path: Path):
    policies = CedarEngine.load(written(tmp_path, b=PERMIT, a=READS_ALL))
    expected = rfc8785.dumps([["a.cedar", READS_ALL], ["b.cedar", PERMIT]])
    assert policies.revision == hashlib.sha256(expected).hexdigest()
    (tmp_path / "notes.txt").write_text("not a policy")
    assert CedarEngine.load(tmp_path).revision == policies.revision
    assert CedarEngine.load(written(tmp_path, b=PERMIT + " ")).revision != policies.revision


async def looked(watch: PolicyWatch) -> None:
    """Twice: what changed is taken once it has stayed the same."""
    await watch.look()
    await watch.look()


def unheard(where: str, error: BaseException) -> None:
    raise AssertionError(where) from error


async def test_an_edit_takes_the_new_policies(tmp_path: Path):
    policies = CedarEngine.load(written(tmp_path, a=PERMIT))
    before, watch = policies.revision, PolicyWatch(policies, unheard)
    assert policies.decide(asked()).allowed
    written(tmp_path, b='@id("no") @reason("stop") forbid (principal, action, resource);')
    assert policies.decide(asked()).allowed
    await looked(watch)
    assert policies.revision != before
    verdict = policies.decide(asked())
    assert (verdict.allowed, verdict.decision.revision) == (False, policies.revision)


async def test_a_bad_policy_keeps_the_last_good(tmp_path: Path):
    policies = CedarEngine.load(written(tmp_path, a=PERMIT))
    before, watch = policies.revision, PolicyWatch(policies, unheard)
    written(tmp_path, b="permit (")
    await looked(watch)
    assert policies.revision == before and "b.cedar:1" in policies.trouble
    assert policies.decide(asked()).allowed
    (tmp_path / "b.cedar").unlink()
    (tmp_path / "a.cedar").unlink()
    await looked(watch)
    assert policies.trouble and policies.decide(asked(user="bob")).allowed
    written(tmp_path, a=PERMIT + " ")
    await looked(watch)
    assert not policies.trouble and policies.revision != before


def test_the_packaged_policies_are_valid_and_change_nothing_unseen(tmp_path: Path):
    policies = CedarEngine.load(written(tmp_path, default=packaged("default.cedar")))
    assert policies.decide(asked(resource=TOOL, left=Budget(0, 0, 0))).allowed


# The documentation

DOCS = Path(__file__).parents[2] / "docs" / "policy.md"


def test_the_examples_of_the_documentation_do_what_it_says(tmp_path: Path):
    blocks = re.findall(r"```\n(@id.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    about_arguments, harmless, examples, *content = blocks
    # The one example replaces a starter policy of the same id.
    starter = re.sub(
        r'@id\("destructive-needs-approval"\).*?;', "", packaged("default.cedar"), count=1, flags=re.DOTALL
    )
    policies = CedarEngine.load(written(tmp_path, default=starter, harmless=harmless, examples=examples))
    unannotated = {"annotations": DESTROYS, "now": MONDAY_9}
    log, commit = Resource("mcp", "git", "git_log"), Resource("mcp", "git", "git_commit")
    assert policies.decide(asked(resource=log, **unannotated)).approve == ()
    assert policies.decide(asked(resource=commit, **unannotated)).approve == ("destructive-needs-approval",)
    mail = asked(resource=Resource("mcp", "mail", "send"), annotations=WRITES, labels=("web",))
    assert policies.decide(mail).decision.rules == ("no-mail-after-web",)
    assert policies.decide(asked(annotations=WRITES, now=MONDAY_9 + 5 * 86_400)).decision.rules == (
        "office-hours-for-writing",
    )
    assert policies.decide(asked(annotations=WRITES, depth=5)).decision.rules == ("deep-chains-do-not-write",)
    assert len(content) == 2
    policies = CedarEngine.load(written(tmp_path, arguments=about_arguments))
    query = {"resource": Resource("mcp", "postgres", "query"), "annotations": READS, "now": MONDAY_9}
    for sql, allowed in (("SELECT 1", True), ("DELETE FROM x", False)):
        assert policies.decide(asked(**query, args=Arguments(texts={"/sql": sql}))).allowed is allowed
    assert not policies.decide(asked(**query, args=Arguments(unprojected=("/sql",)))).allowed
    refund = {
        "resource": Resource("mcp", "bank", "refund"),
        "tool_groups": ("payments",),
        "annotations": DESTROYS,
        "now": MONDAY_9,
    }
    assert "small-refunds" in policies.decide(asked(**refund, args=Arguments(numbers={"/amount": 50}))).decision.rules
    assert (
        "small-refunds" not in policies.decide(asked(**refund, args=Arguments(numbers={"/amount": 51}))).decision.rules
    )


def test_the_examples_about_content_redact_and_refuse_as_they_say(tmp_path: Path):
    blocks = re.findall(r"```\n(@id.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    personal, orders = blocks[3:]
    policies = CedarEngine.load(written(tmp_path, default=packaged("default.cedar"), personal=personal, orders=orders))
    person, sign = ("pii.iban",), ("injection.override",)
    assert policies.decide(asked(findings=person)).redact == ("pii",)
    assert "pii" in policies.decide(asked(action="release", findings=person)).redact
    named = policies.decide(asked(findings=(*person, "scan.unredactable_pii")))
    assert (named.allowed, named.decision.rules) == (False, ("no-personal-data-as-a-name",))
    released = policies.decide(asked(action="release", findings=sign))
    assert {"hidden", "injection", "secret"} <= set(released.redact)
    web = asked(action="release", resource=Resource("mcp", "web", "fetch"), findings=sign)
    assert policies.decide(web).decision.rules == ("no-orders-from-the-web",)
    # Without a finding nothing is redacted but what the starter redacts.
    assert policies.decide(asked()).redact == ()
