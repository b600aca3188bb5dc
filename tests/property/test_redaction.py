"""Redaction keeps the shape of JSON, leaves no secret that was found in it, and calls equal secrets by equal names."""

from __future__ import annotations

import json
import re
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from remit_broker.adapters.detectors import ContentDetectors
from remit_broker.core.findings import MAX_PLACES, UNREDACTABLE
from tests.support.secret_samples import SAMPLES
from tests.unit.test_disguise import WAYS as DISGUISES
from tests.unit.test_injection import HIDDEN
from tests.unit.test_injection import SAMPLES as SIGNS
from tests.unit.test_pii import SAMPLES as PERSONAL

DETECTORS = ContentDetectors()
CLASSES = ("secret", "pii", "injection", "hidden")
PLACEHOLDER = re.compile(r"\[redacted:(secret\.[a-z_]+)#([1-9][0-9]*)\]")

secrets = st.sampled_from(
    [
        *(secret for _, secret in SAMPLES.values()),
        *(disguise(SAMPLES["npm_token"][1]) for disguise in DISGUISES.values()),
        *(text for texts in PERSONAL.values() for text in texts),
        *(text for texts in SIGNS.values() for text in texts),
        *HIDDEN.values(),
    ]
)
samples = st.sampled_from([text for text, _ in SAMPLES.values()])
glue = st.one_of(
    st.text(max_size=12),
    st.sampled_from((" ", "\n", ",", "://a:", "password=", "@b", '"', "=", "-", "-----", "é", "\ud800")),
)
texts = st.lists(st.one_of(secrets, samples, glue), max_size=6).map("".join)
names = st.one_of(st.text(max_size=8), st.sampled_from(("password", "api_key", "a/b", "~", "note")), texts)
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), texts
)
values = st.recursive(
    leaves,
    lambda below: st.one_of(st.lists(below, max_size=4), st.dictionaries(names, below, max_size=4)),
    max_leaves=12,
)


def shape(value: Any) -> Any:
    """``value`` without what its strings say."""
    if isinstance(value, dict):
        return {name: shape(below) for name, below in value.items()}
    if isinstance(value, list):
        return [shape(below) for below in value]
    return str if isinstance(value, str) else (type(value), value)


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for below in value.values() for text in strings(below)]
    if isinstance(value, list):
        return [text for below in value for text in strings(below)]
    return [value] if isinstance(value, str) else []


@settings(deadline=None, max_examples=120)
@given(values)
def test_redacted_json_has_the_same_shape(value: Any):
    before = json.dumps(value)
    changed, places = DETECTORS.redact(value, ("secret",))
    assert shape(changed) == shape(value)
    assert json.loads(json.dumps(changed)) == changed
    assert json.dumps(value) == before
    assert bool(places) is (changed != value)
    assert len(places) <= MAX_PLACES


@settings(deadline=None, max_examples=120)
@given(values)
@example({"\ud800" * 60 + "é": "AKIA" + "Z" * 16})
def test_redacted_json_contains_nothing_that_is_found_again(value: Any):
    changed, _ = DETECTORS.redact(value, CLASSES)
    names = {finding.where for finding in DETECTORS.scan(changed) if finding.kind.startswith(UNREDACTABLE)}
    assert all(finding.where in names for finding in DETECTORS.scan(changed))
    assert DETECTORS.redact(changed, CLASSES) == (changed, ())


@given(st.text(max_size=6), st.text(max_size=6))
@settings(deadline=None, max_examples=60)
@example("", "\xa0")
@example("é", "\U0001f600")
def test_what_is_found_within_a_character_takes_all_of_it(before: str, after: str):
    """An escape takes the byte after it, which may be the first of several that make a character."""
    changed, _ = DETECTORS.redact(f"{before}\x1b{after}", CLASSES)
    assert "\x1b" not in changed or not DETECTORS.scan(changed)
    assert changed == changed.encode(errors="surrogatepass").decode(errors="surrogatepass")


@settings(deadline=None, max_examples=120)
@given(st.sampled_from(sorted(SAMPLES)), values)
def test_a_secret_in_a_value_is_gone_after_redaction(kind: str, around: Any):
    text, secret = SAMPLES[kind]
    changed, _ = DETECTORS.redact({"a": around, "b": [text]}, ("secret",))
    assert secret not in changed["b"][0]


@settings(deadline=None, max_examples=120)
@given(st.lists(st.sampled_from(sorted(SAMPLES)), max_size=8))
def test_equal_secrets_have_equal_placeholders_and_others_do_not(order: list[str]):
    changed, _ = DETECTORS.redact([SAMPLES[kind][0] for kind in order], ("secret",))
    named: dict[str, str] = {}
    for kind, text in zip(order, changed, strict=True):
        match = PLACEHOLDER.search(text)
        assert match is not None
        assert match[1] == f"secret.{kind}"
        assert named.setdefault(kind, match[0]) == match[0]
    assert len(set(named.values())) == len(set(order))


named_by_secrets = st.recursive(
    texts,
    lambda below: st.one_of(st.lists(below, max_size=3), st.dictionaries(samples, below, max_size=3)),
    max_leaves=8,
)


@settings(deadline=None, max_examples=120)
@given(named_by_secrets)
def test_a_finding_never_contains_a_secret(value: Any):
    shown = repr(DETECTORS.scan(value)) + repr(DETECTORS.redact(value, ("secret",))[1])
    for _, secret in SAMPLES.values():
        assert secret not in shown
