"""The caps of a configuration: which apply to whom, and which are refused because they would not be what they seem."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from remit_broker.adapters.errors import ConfigError
from remit_broker.config import settings
from remit_broker.core.accounts import Cap, Key
from remit_broker.core.caps import Whose, parse_cap, parse_caps

WHO = Whose("default", "ann", "desk", "mcp/mail/send")


def applied(raw: dict[str, Any], whose: Whose = WHO) -> dict[tuple[str, str, str], Cap]:
    return {(key.kind, key.name, key.window): cap for key, cap in parse_caps(raw).of(whose)}


def test_a_unit_that_is_not_named_is_not_capped() -> None:
    assert parse_cap("usd=5") == Cap(usd_micros=5_000_000)
    assert parse_cap("tokens=100, calls=2") == Cap(tokens=100, calls=2)
    assert parse_cap("usd_micros=7") == Cap(usd_micros=7)


def test_an_override_replaces_the_default_window_by_window() -> None:
    raw = {"user": {"default": {"day": "calls=5"}, "ann": {"month": "usd=50"}, "bob": {"day": "calls=50"}}}
    assert applied(raw) == {
        ("user", "ann", "day"): Cap(calls=5), ("user", "ann", "month"): Cap(usd_micros=50_000_000)
    }  # fmt: skip
    assert applied(raw, WHO._replace(user="bob")) == {("user", "bob", "day"): Cap(calls=50)}
    assert applied(raw, WHO._replace(user="carol")) == {("user", "carol", "day"): Cap(calls=5)}


def test_the_default_of_tools_is_one_account_for_each_and_a_pattern_one_for_all() -> None:
    raw = {
        "tool": {"default": {"hour": "calls=9"}, "mcp/mail/*": {"hour": "calls=20"}, "mcp/git/*": {"day": "calls=1"}}
    }
    assert applied(raw) == {
        ("tool", "mcp/mail/send", "hour"): Cap(calls=9), ("tool", "mcp/mail/*", "hour"): Cap(calls=20)
    }  # fmt: skip
    assert applied(raw, WHO._replace(tool="")) == {}


def test_every_kind_applies_to_one_call() -> None:
    raw = {kind: {"default": {"day": "calls=5"}} for kind in ("user", "agent", "tool", "tenant")}
    assert set(applied(raw)) == {
        ("user", "ann", "day"), ("agent", "desk", "day"), ("tool", "mcp/mail/send", "day"), ("tenant", "default", "day")
    }  # fmt: skip


def test_what_is_configured_now_is_the_cap_of_an_account() -> None:
    caps = parse_caps({"user": {"default": {"day": "calls=5"}}, "tool": {"mcp/a/*": {"day": "calls=2"}}})
    assert caps.cap(Key("default", "user", "ann", "day")) == Cap(calls=5)
    assert caps.cap(Key("default", "tool", "mcp/a/*", "day")) == Cap(calls=2)
    assert caps.cap(Key("default", "user", "ann", "month")) is None
    assert list(caps.named("default")) == [Key("default", "tool", "mcp/a/*", "day")]
    assert not parse_caps({}) and caps


BAD = {
    "caps.users": {"users": {"ann": {"day": "calls=1"}}},
    'caps.user."ann".week': {"user": {"ann": {"week": "calls=1"}}},
    'caps.user."ann".day': {"user": {"ann": {"day": "calls=0"}}},
    'caps.user."bob".day': {"user": {"bob": {"day": "usd=5,calls=0"}}},
    'caps.user."eve".day': {"user": {"eve": {"day": "5 dollars"}}},
    'caps.user."joe".hour': {"user": {"joe": {"day": "calls=5", "hour": "calls=6"}}},
    'caps.user."kim".day': {"user": {"default": {"month": "calls=5"}, "kim": {"day": "calls=6"}}},
    'caps.user."liz".day': {"user": {"liz": {"day": "usd=6"}}, "tenant": {"default": {"month": "usd=5"}}},
    'caps.agent."default".day': {"agent": {"default": {"day": "usd=6"}}, "tenant": {"default": {"day": "usd=5"}}},
    'caps.tool."mcp/mail/send".hour': {"tool": {"mcp/mail/send": {"hour": "calls=6"}, "mcp/*": {"day": "calls=5"}}},
    'caps.tool."mcp/mail/*".hour': {"tool": {"mcp/mail/*": {"hour": "calls=6"}, "mcp/*": {"hour": "calls=5"}}},
    'caps.tool."default".hour': {"tool": {"default": {"hour": "calls=6"}, "mcp/*": {"hour": "calls=5"}}},
    'caps.tool."mail"': {"tool": {"mail": {"hour": "calls=6"}}},
    'caps.tool."agent/desk/*"': {"tool": {"agent/desk/*": {"hour": "calls=6"}}},
    'caps.tool."mcp/mail"': {"tool": {"mcp/mail": {"hour": "calls=6"}}},
    'caps.agent."No"': {"agent": {"No": {"day": "calls=1"}}},
    'caps.user.""': {"user": {"": {"day": "calls=1"}}},
    'caps.tenant."acme"': {"tenant": {"acme": {"day": "calls=1"}}},
    'caps.user."max"': {"user": {"max": {}}},
}  # fmt: skip


@pytest.mark.parametrize("key", BAD)
def test_a_cap_that_would_not_be_what_it_seems_is_refused_by_file_and_key(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError) as bad:
        settings(tmp_path / "remit.toml", {"caps": BAD[key]})
    assert bad.value.message.startswith(f"{tmp_path / 'remit.toml'}: {key}: ")
    assert bad.value.ask


@pytest.mark.parametrize(
    "caps",
    [
        {"user": {"default": {"hour": "calls=5", "day": "calls=5"}}},
        {"user": {"default": {"day": "calls=5"}, "ann": {"day": "calls=500"}}},
        {"user": {"default": {"day": "calls=5"}}, "tenant": {"default": {"day": "usd=1", "minute": "calls=1"}}},
        {"tool": {"mcp/mail/*": {"hour": "calls=6"}, "mcp/git/*": {"hour": "calls=5"}}},
        {"tool": {"mcp/mail/send": {"day": "calls=6"}, "mcp/mail/*": {"hour": "calls=5"}}},
    ],
)
def test_caps_that_can_bind_are_taken(tmp_path: Path, caps: dict[str, Any]) -> None:
    assert settings(tmp_path / "remit.toml", {"caps": caps}).caps
