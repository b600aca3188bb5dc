"""The algebra of labels: a lattice in which nothing is ever joined away, and values that stand for themselves alone."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from remit_broker.core.label_sources import Declared, LabelSources, parse_sources
from remit_broker.core.labels import LEVELS, ceiling, is_label, level, mixed, normal, of_value, trusted
from remit_schemas.claims import labels_within, meet_labels
from remit_schemas.errors import Refusal

NAMES = ["untrusted", "web", "pii", "customer:1", "customer:2", "region:eu", *LEVELS]
LABELS = st.frozensets(st.sampled_from(NAMES)).map(normal)
CEILINGS = st.frozensets(st.sampled_from(NAMES)).map(ceiling) | st.just(("*",))


@given(LABELS, LABELS, LABELS)
def test_labels_are_a_lattice(a: frozenset[str], b: frozenset[str], c: frozenset[str]) -> None:
    """The union is the least upper bound, and it is normal: no level is lost or invented, integrity only falls."""
    join = a | b
    assert join == normal(join), "what is joined needs nothing added"
    assert level(join) == max(level(a), level(b))
    assert trusted(join) == (trusted(a) and trusted(b))
    assert a <= join and b <= join
    if a <= c and b <= c:
        assert join <= c
    assert (a | b) | c == a | (b | c) and a | b == b | a and a | a == a


@given(LABELS, CEILINGS, CEILINGS)
def test_a_ceiling_is_a_level_and_a_set_of_names(
    data: frozenset[str], one: tuple[str, ...], other: tuple[str, ...]
) -> None:
    both = meet_labels(one, other)
    assert labels_within(data, both) == (labels_within(data, one) and labels_within(data, other))
    if labels_within(data, one) and one != ("*",):
        assert level(data) <= level(one)


@pytest.mark.parametrize(("highest", "passes"), [(name, LEVELS[: n + 1]) for n, name in enumerate(LEVELS)])
def test_a_level_as_a_ceiling_lets_what_is_below_it_pass(highest: str, passes: tuple[str, ...]) -> None:
    for name in LEVELS:
        assert labels_within(normal({name}), ceiling({highest})) == (name in passes)


@given(LABELS)
def test_families_with_two_members_are_mixed(labels: frozenset[str]) -> None:
    assert mixed(labels) == (("customer",) if {"customer:1", "customer:2"} <= labels else ())


@given(st.text(min_size=1, max_size=80), st.text(min_size=1, max_size=80))
@example("acme", "Acme")
@example("x" * 60, "x" * 61)
def test_two_values_never_have_one_label(one: str, other: str) -> None:
    first, second = of_value("customer:", one), of_value("customer:", other)
    assert is_label(first) and is_label(second) and first.startswith("customer:")
    assert (first == second) == (one == other)


@pytest.mark.parametrize(
    "value", ["sha256.0123456789abcdef0123456789abcdef", "Acme", "a b", "a:b", "x" * 60, "-a", "é"]
)
def test_a_value_that_cannot_be_a_label_stands_there_as_a_digest(value: str) -> None:
    label = of_value("customer:", value)
    assert label.startswith("customer:sha256.") and is_label(label) and label != of_value("customer:", label[9:])


def sources() -> LabelSources:
    return parse_sources(
        {
            "mcp/crm/*": ("confidential", "customer:{customer.id}"),
            "mcp/*": ("tools",),
            "mcp/crm/*#notes": ("free", "author:{author}"),
        },
        {"pii": ("personal",), "secret.jwt": ("token",)},
    )


def test_everything_that_matches_adds_up() -> None:
    found = sources().of("mcp/crm/get")
    assert found.answers.of({"customer": {"id": 7}}) == {"internal", "confidential", "tools", "customer:7"}
    assert found.answers.of({"customer": {"id": ["7", "x"]}}) >= {"customer:7", "customer:x"}
    assert found.sent({"customer": {"id": 7}}) == frozenset()
    assert found.sent({"notes": "…", "author": "eve"}) == {"free", "author:eve"}
    assert sources().of("agent/a/b") == Declared()


@pytest.mark.parametrize("args", [{}, {"customer": 7}, {"customer": {"id": True}}, {"customer": {"id": {}}},
                                  {"customer": {"id": list(range(33))}}, {"customer": {"id": [[1]]}}])  # fmt: skip
def test_a_value_that_is_missing_or_none_refuses(args: dict[str, object]) -> None:
    with pytest.raises(Refusal) as no:
        sources().of("mcp/crm/get").answers.of(args)
    assert (no.value.body.code, no.value.body.rule) == ("ARGUMENTS_INVALID", "labels.argument")


def test_what_was_found_and_is_not_replaced_has_labels() -> None:
    found = sources()
    assert found.of_findings(["pii.email", "secret.jwt", "secret.npm_token"]) == {"personal", "token"}
    assert found.of_findings(["pii.email", "secret.jwt"], ("pii",)) == {"token"}
    assert found.of_findings(["pii.email", "scan.unredactable_pii"], ("pii",)) == {"personal"}, "some of it stayed"
