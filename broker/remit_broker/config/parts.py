"""The texts of a configuration as the values they stand for. Each raises :class:`ConfigError` that names its key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import msgspec

from remit_broker.adapters.errors import ConfigError
from remit_broker.config.keys import Config, LimitsConfig
from remit_broker.core.caps import BadCap, Caps, parse_caps
from remit_broker.core.extraction import Endorser, TooWide, parse_endorser
from remit_broker.core.label_sources import BadLabels, LabelSources, parse_sources
from remit_broker.core.rates import BadRate, Rate, Rates, parse_rates
from remit_schemas.budget import Budget, parse_budget
from remit_schemas.errors import Refusal
from remit_schemas.model_prices import DEAREST, DEFAULT, ModelPrice, parse_model_price
from remit_schemas.names import is_principal
from remit_schemas.scope import Detail, parse_scope


class Clients(msgspec.Struct, frozen=True, kw_only=True):
    """What the session of a client of MCP is given."""

    scopes: tuple[Detail, ...] = (Detail(resource="mcp/**"),)
    budget: Budget = Budget(10_000_000, 1_000_000, 2000)


def clients(file: Path, config: Config) -> Clients:
    mcp, key = config.mcp, "mcp.agent"
    if not is_principal(mcp.agent):
        raise ConfigError(f"{file}: {key} is {mcp.agent!r}", "use [a-z0-9][a-z0-9_-]*, at most 63 characters")
    for name in mcp.sub_agents:
        if not name or not is_principal(f"{mcp.agent}-{name}"):
            raise ConfigError(
                f"{file}: mcp.sub_agents has {name!r}", "use [a-z0-9_-], with mcp.agent at most 62 characters"
            )
    for name in mcp.trace:
        if not is_principal(name):
            raise ConfigError(f"{file}: mcp.trace has {name!r}", "name servers as remit servers list does")
    try:
        key = "mcp.scopes"
        scopes = tuple(parse_scope(text) for text in mcp.scopes)
        key = "mcp.budget"
        budget = parse_budget(mcp.budget)
    except Refusal as bad:
        raise ConfigError(f"{file}: {key}: {bad.body.message}", bad.body.ask) from None
    if not scopes:
        raise ConfigError(f"{file}: mcp.scopes is empty", 'write such as ["mcp/**"]')
    return Clients(scopes=scopes, budget=budget)


def price(file: Path, pattern: str, text: str) -> Budget:
    try:
        return parse_budget(text)
    except Refusal as bad:
        raise ConfigError(f"{file}: prices.{pattern!r}: {bad.body.message}", bad.body.ask) from None


def models(file: Path, raw: Mapping[str, str]) -> dict[str, ModelPrice]:
    prices: dict[str, ModelPrice] = {}
    # The default first: a price that does not say what a call costs takes it from there.
    for name in sorted(raw, key=lambda name: name != DEFAULT):
        try:
            prices[name] = parse_model_price(raw[name], prices.get(DEFAULT, DEAREST))
        except Refusal as bad:
            raise ConfigError(f"{file}: models.{name!r}: {bad.body.message}", bad.body.ask) from None
    return {DEFAULT: DEAREST, **prices}


def caps(file: Path, raw: Mapping[str, Mapping[str, Mapping[str, str]]]) -> Caps:
    try:
        return parse_caps(raw)
    except BadCap as bad:
        raise ConfigError(f"{file}: {bad.key}: {bad.why}", bad.ask) from None


def rates(file: Path, config: Config) -> Rates:
    try:
        return parse_rates(config.rates, *default_rates(config.limits))
    except BadRate as bad:
        raise ConfigError(f"{file}: {bad.key}: {bad.why}", bad.ask) from None


def labels(file: Path, config: Config) -> LabelSources:
    try:
        return parse_sources(config.labels, config.content.labels)
    except BadLabels as bad:
        raise ConfigError(f"{file}: {bad.key}: {bad.why}", bad.ask) from None


def endorsers(file: Path, config: Config) -> tuple[Endorser, ...]:
    found: dict[str, Endorser] = {}
    for number, raw in enumerate(config.endorsers):
        try:
            endorser = parse_endorser(raw)
        except TooWide as bad:
            raise ConfigError(f"{file}: endorsers[{number}]: {bad}", "docs/labels.md shows what is narrow") from None
        if found.setdefault(endorser.target, endorser) is not endorser:
            raise ConfigError(f"{file}: endorsers[{number}]: {endorser.target} has one already", "join the two")
    return tuple(found.values())


def default_rates(limits: LimitsConfig) -> tuple[Rate, Rate | None]:
    """The rate of a caller and of a callee that no override names; None: unlimited."""
    target = limits.target_calls_per_second
    return Rate(limits.calls_per_second, limits.burst), Rate(target, math.ceil(target)) if target else None


def pair(file: Path, text: str) -> tuple[str, str]:
    try:
        return cycle(text)
    except ConfigError as bad:
        raise ConfigError(f"{file}: limits.allow_cycles: {bad.message}", bad.ask) from None


def cycle(text: str) -> tuple[str, str]:
    """The (caller, callee) of ``caller>callee``, a pair that may close a loop. Raises :class:`ConfigError`."""
    caller, callee = (part.strip() for part in (*text.split(">", 1), "")[:2])
    if not (is_principal(caller) and is_principal(callee)):
        raise ConfigError(f"{text!r} is no pair of agents", 'write "caller>callee"')
    return caller, callee
