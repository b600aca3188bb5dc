"""Rates: defaults, overrides by name and pattern, and the ones that would not be what they seem."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from remit_broker.adapters.errors import ConfigError
from remit_broker.adapters.limits import callers, targets
from remit_broker.config import settings
from remit_broker.core.caps import parse_caps
from remit_broker.core.effective import ineffective
from remit_broker.core.rates import Overrides, Rate, parse_rate


class Clock:
    """A clock that stands still."""

    def now(self) -> float:
        return 1000.0

    def monotonic(self) -> float:
        return 1000.0


def admitted(limit: Any, who: str, times: int = 100) -> int:
    return sum(limit.admit(who) == 0 for _ in range(times))


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("10/s", Rate(10, 10)), ("0.5/second", Rate(0.5, 1)), ("600/minute", Rate(10, 10)), ("90/h", Rate(0.025, 1)),
        ("20/hour, burst=5", Rate(20 / 3600, 5)), (" 2 / m , burst = 7 ", Rate(2 / 60, 7)),
    ],
)  # fmt: skip
def test_a_rate_is_an_amount_a_time_and_a_burst(text: str, rate: Rate) -> None:
    assert parse_rate("k", text) == rate


def test_an_override_of_a_caller_is_each_ones_own_and_the_longest_pattern_counts() -> None:
    overrides = Overrides({"batch-*": Rate(1, 7), "batch-slow": Rate(1, 2)})
    limit = callers(Clock(), Rate(1, 5), overrides)
    assert [admitted(limit, who) for who in ("planner", "batch-a", "batch-b", "batch-slow")] == [5, 7, 7, 2]


def test_an_override_of_a_target_is_shared_by_all_it_matches_and_the_default_is_each_callees() -> None:
    limit = targets(Clock(), Rate(1, 5), Overrides({"mcp/mail/*": Rate(1, 3), "agent/writer/*": Rate(1, 9)}))
    assert admitted(limit, "mcp/mail/send", 2) + admitted(limit, "mcp/mail/list") == 3
    assert admitted(limit, "agent/writer/publish") == 9
    assert admitted(limit, "mcp/git/log", 3) + admitted(limit, "mcp/git/diff") == 5, "one callee, one default"
    assert admitted(limit, "mcp/web/get") == 5


def test_without_a_default_only_what_an_override_names_is_limited() -> None:
    limit = targets(Clock(), None, Overrides({"mcp/mail/*": Rate(1, 3)}))
    assert (admitted(limit, "mcp/mail/send"), admitted(limit, "mcp/git/log")) == (3, 100)


BAD: dict[str, dict[str, Any]] = {
    "rates.callers": {"rates": {"callers": {"a": "1/s"}}},
    'rates.caller."a".': {"rates": {"caller": {"a": "quickly"}}},
    'rates.caller."b"': {"rates": {"caller": {"b": "0/s"}}},
    'rates.caller."c"': {"rates": {"caller": {"c": "1/s, burst=0"}}},
    'rates.caller."d"': {"rates": {"caller": {"d": "200/s, burst=400"}}},
    'rates.caller."No"': {"rates": {"caller": {"No": "1/s"}}},
    'rates.target."mail"': {"rates": {"target": {"mail": "1/s"}}},
    'rates.target."mcp/mail/*"': {
        "rates": {"target": {"mcp/mail/*": "4/s"}}, "limits": {"target_calls_per_second": 4.0}
    },
    'rates.target."mcp/*"': {"rates": {"target": {"mcp/*": "2000000/s"}}},
    'caps.user."ａnn"': {"caps": {"user": {"ａnn": {"day": "calls=1"}}}},  # noqa: RUF001
    'caps.tool."mcp/mail/**"': {"caps": {"tool": {"mcp/mail/*": {"day": "calls=1"}, "mcp/mail/**": {"day": "calls=1"}}}},
}  # fmt: skip


@pytest.mark.parametrize("key", BAD)
def test_a_limit_that_would_not_be_what_it_seems_is_refused_by_file_and_key(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError) as bad:
        settings(tmp_path / "remit.toml", BAD[key])
    assert bad.value.message.startswith(f"{tmp_path / 'remit.toml'}: {key.rstrip('.')}")
    assert bad.value.ask


DAY = {"user": {"default": {"day": "usd=5,calls=100"}}}


@pytest.mark.parametrize(
    ("caps", "prices", "key"),
    [
        (DAY, {}, 'caps.user."default".day'),
        (DAY, {"mcp/*": "usd=0.1,calls=1"}, 'caps.user."default".day'),
        (DAY, {"*": "calls=2"}, 'caps.user."default".day'),
        ({"agent": {"a": {"hour": "tokens=5"}}}, {"*": "usd=1"}, 'caps.agent."a".hour'),
        ({"tool": {"mcp/mail/*": {"day": "usd=5"}}}, {"mcp/git/*": "usd=1"}, 'caps.tool."mcp/mail/*".day'),
        ({"tool": {"mcp/mail/*": {"day": "usd=5"}}}, {"mcp/mail/*": "usd=6,calls=1"}, 'caps.tool."mcp/mail/*".day'),
        ({"tool": {"default": {"day": "calls=1"}}}, {"mcp/x/y": "calls=2"}, 'caps.tool."default".day'),
        ({"tenant": {"default": {"day": "usd=5"}}}, {"*": "usd=6,calls=1"}, 'caps.tenant."default".day'),
    ],
)
def test_a_cap_that_counts_nothing_or_refuses_everything_is_found(caps: Any, prices: dict[str, str], key: str) -> None:
    found = ineffective(parse_caps(caps), prices)
    assert key in [one.key for one in found] and all(one.why and one.ask for one in found)


@pytest.mark.parametrize(
    ("caps", "prices"),
    [
        ({"user": {"default": {"day": "calls=100"}}}, {}),
        (DAY, {"*": "usd=0.1,calls=1"}),
        (DAY, {"*": "usd=0,calls=1"}),
        (DAY, {"mcp/*": "usd=0.1,calls=1", "agent/*": "usd=0.2,calls=1"}),
        ({"user": {"default": {"day": "usd=1"}, "boss": {"day": "usd=100"}}}, {"*": "usd=5,calls=1"}),
        ({"tool": {"mcp/mail/*": {"day": "usd=5"}}}, {"mcp/mail/*": "usd=1,calls=1", "mcp/git/*": "usd=50,calls=1"}),
    ],
)
def test_caps_that_a_price_stands_behind_are_found_good(caps: Any, prices: dict[str, str]) -> None:
    assert ineffective(parse_caps(caps), prices) == []
