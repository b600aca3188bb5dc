"""Secrets are found wherever they hide in JSON, told from what only looks like them, and never shown."""

from __future__ import annotations

import json

import pytest

from remit_broker.adapters import detectors as module
from remit_broker.adapters.content import walk
from remit_broker.adapters.content.search import Search, Work
from remit_broker.adapters.content.secrets import KINDS as SECRETS
from remit_broker.adapters.detectors import ContentDetectors
from remit_broker.core.findings import MAX_PLACES, MAX_POINTER, OVER_CAP, UNREDACTABLE
from remit_schemas.errors import Code, Refusal
from remit_schemas.records import Finding
from tests.support.secret_samples import SAMPLES

DETECTORS = ContentDetectors()
TOKEN = SAMPLES["github_token"][1]
FOUND = "secret.github_token"


def kinds(value: object) -> set[str]:
    return {finding.kind for finding in DETECTORS.scan(value)}


def test_there_is_a_sample_of_every_kind():
    assert {kind.name for kind in SECRETS} == {f"secret.{name}" for name in SAMPLES}
    assert len(SAMPLES) >= 60


@pytest.mark.parametrize("kind", SAMPLES)
def test_each_kind_of_secret_is_found_and_replaced_and_nothing_else(kind: str):
    text, secret = SAMPLES[kind]
    found = [finding for finding in DETECTORS.scan({"a": [text]}) if finding.kind.startswith("secret.")]
    assert found == [Finding(f"secret.{kind}", "/a/0", 1)]
    changed, places = DETECTORS.redact({"a": [text]}, ("secret",))
    assert changed == {"a": [text.replace(secret, f"[redacted:secret.{kind}#1]")]}
    assert places == ("/a/0",)


def test_every_kind_is_found_in_a_long_text_of_all_kinds():
    filler = "the quick brown fox jumps over the lazy dog. " * 20
    text = filler.join("\n" + text + "\n" for text, _ in SAMPLES.values())
    found = {span.kind for span in Search().spans(text.encode(), Work())}
    assert found >= {f"secret.{kind}" for kind in SAMPLES}


@pytest.mark.parametrize(
    "text",
    [
        "AKIA is how the ids begin",
        "xAKIAABCDEFGHIJKLMNOPx",
        "password: changeme-1234",
        'password = os.environ["PASSWORD_1"]',
        "secret = get_secret(name1)",
        "password=$DB_PASSWORD_1",
        "api_key: <your-api-key-1>",
        "https://user:password@example.org/",
        "the password is required; tokens=1000, secrets: none",
        "commit v1.2.3 0123456789abcdef0123456789abcdef01234567",
        "eyJub3QiOiJqb3NlIn0.eyJub3QiOiJqb3NlIn0.AAAAAAAAAAAAAAAAAAAAAAAA",
        "sha256:" + "0123456789abcdef" * 4,
        "550e8400-e29b-41d4-a716-446655440000",
        "key-00000000000000000000000000000000",
        "[redacted:secret.password#1]",
    ],
)
def test_what_only_looks_like_a_secret_is_left_alone(text: str):
    assert DETECTORS.scan({"text": text}) == ()


def test_a_value_is_a_secret_by_the_name_of_its_member():
    value = {
        "db": {"password": "correct-horse-battery", "Api-Key": "Zx81Zx81!?", "password_hint": "correct-horse-battery"}
    }
    assert DETECTORS.scan(value) == (
        Finding("secret.password", "/db/Api-Key"),
        Finding("secret.password", "/db/password"),
    )
    changed, _ = DETECTORS.redact(value, ("secret",))
    assert changed["db"]["password"] == "[redacted:secret.password#1]"
    assert changed["db"]["password_hint"] == "correct-horse-battery"
    assert DETECTORS.scan({"password": "required", "secret": "", "token": 5, "passwd": "${SECRET}"}) == ()


def test_a_secret_is_found_at_any_depth_and_its_place_is_a_json_pointer():
    value: object = TOKEN
    for _ in range(60):
        value = [{"a/b~": value}]
    (finding,) = DETECTORS.scan(value)
    assert finding.kind == FOUND
    assert finding.where.startswith("/0/a~1b~0/0")
    assert len(finding.where) <= MAX_POINTER


def test_the_same_place_is_counted_not_repeated():
    assert DETECTORS.scan([f"{TOKEN} {TOKEN}"]) == (Finding(FOUND, "/0", 2),)


def test_a_secret_in_a_name_is_found_and_cannot_be_replaced():
    value = {"x": {TOKEN: 1}}
    assert kinds(value) == {FOUND, UNREDACTABLE}
    assert DETECTORS.redact(value, ("secret",)) == (value, ())


def test_no_finding_and_no_place_contains_the_secret():
    value = {TOKEN: {f"in {TOKEN}": [TOKEN]}}
    assert TOKEN not in repr(DETECTORS.scan(value))
    assert TOKEN not in repr(DETECTORS.redact(value, ("secret",))[1])


def test_lone_surrogates_and_odd_characters_hide_nothing():
    for text in (f"\ud800 {TOKEN} \udfff", f"é{TOKEN}é", f"\x00{TOKEN}\x00", f"{TOKEN}\u200b"):
        assert kinds({"a": text}) - {"hidden.control", "hidden.zero_width"} == {FOUND}
        changed, _ = DETECTORS.redact({"a": text}, ("secret",))
        assert changed == {"a": text.replace(TOKEN, f"[redacted:{FOUND}#1]")}


def test_secrets_next_to_each_other_are_all_found():
    first, second = SAMPLES["aws_access_key"][1], SAMPLES["npm_token"][1]
    changed, _ = DETECTORS.redact(f"{first},{second}", ("secret",))
    assert changed == "[redacted:secret.aws_access_key#1],[redacted:secret.npm_token#1]"


def test_what_only_shows_after_a_replacement_is_replaced_too(monkeypatch: pytest.MonkeyPatch):
    # The end of the one is the beginning of the other, so that one search finds only the first of each pair.
    secret = SAMPLES["azure_client_secret"][1]
    assert DETECTORS.redact(f"{secret} {secret}", ("secret",))[0] == " ".join(
        ["[redacted:secret.azure_client_secret#1]"] * 2
    )
    # Where there is no end to it, nothing of the text is kept.
    monkeypatch.setattr(module, "_ROUNDS", 1)
    assert DETECTORS.redact(f"{secret} {secret}", ("secret",))[0] == "[redacted:secret.azure_client_secret#2]"


def test_only_the_wanted_kinds_are_replaced():
    value = [SAMPLES["jwt"][1], TOKEN]
    assert DETECTORS.redact(value, (FOUND,))[0] == [value[0], f"[redacted:{FOUND}#1]"]
    assert DETECTORS.redact(value, ("pii",)) == (value, ())


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("x" * (walk.MAX_BYTES + 1), id="bytes"),
        pytest.param(["x" * 1000] * (walk.MAX_BYTES // 1000 + 1), id="bytes together"),
        pytest.param([0] * (walk.MAX_ITEMS + 1), id="items"),
        pytest.param({str(i): i for i in range(walk.MAX_ITEMS)}, id="names"),
        pytest.param([[0] * 600] * 600, id="items together"),
    ],
)
def test_more_than_is_searched_is_a_finding(value: object):
    assert OVER_CAP in kinds(value)


def test_nesting_beyond_reason_is_a_finding_and_not_redacted():
    value: object = TOKEN
    for _ in range(5000):
        value = [value]
    assert kinds(value) == {OVER_CAP}
    with pytest.raises(Refusal) as no:
        DETECTORS.redact(value, ("secret",))
    assert no.value.body.code is Code.TOO_LARGE


def test_what_lies_within_the_caps_is_still_found_when_they_are_exceeded():
    assert kinds([TOKEN, "x" * walk.MAX_BYTES, "y" * walk.MAX_BYTES]) == {OVER_CAP, FOUND}
    assert kinds(["x" * (walk.MAX_BYTES + 1), "y" * 9, TOKEN]) == {OVER_CAP, FOUND}


def test_many_findings_fit_into_a_record():
    value = {f"{'member' * 20}{i}": [text for text, _ in SAMPLES.values()] for i in range(20)}
    found = DETECTORS.scan(value)
    assert sum(finding.count for finding in found) >= 20 * len(SAMPLES)
    assert len(found) <= MAX_PLACES + len(SAMPLES)
    assert len(json.dumps([[finding.kind, finding.where, finding.count] for finding in found])) < 12_000
    places = DETECTORS.redact(value, ("secret",))[1]
    assert len(places) <= MAX_PLACES
    assert places[-1] == ""
