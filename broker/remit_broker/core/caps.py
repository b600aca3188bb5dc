"""Which caps apply to a call: the ``[caps]`` of the configuration, checked, and looked up by who calls what.

A table is named after a user, an agent, a tool pattern or a tenant, or is ``default``. A named one replaces the default window
by window. A tool pattern is one account that all tools it matches share; the default gives each tool an account of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

from remit_broker.core.accounts import KINDS, WINDOWS, Cap, Key, Kind, Window
from remit_schemas.budget import UNITS, parse_budget
from remit_schemas.errors import Refusal
from remit_schemas.names import is_principal, is_tenant, normalize, parse_resource

DEFAULT: Final = "default"
EVERY_TOOL: Final = "mcp/*/*"

Table = dict[Window, Cap]


class Whose(NamedTuple):
    """Who a hop's own cost is counted for. ``tool`` is empty where an agent is called."""

    tenant: str
    user: str
    agent: str
    tool: str


class BadCap(Exception):  # noqa: N818 - a finding about a configuration
    """A cap that would not be what its author thinks. ``key`` is where, ``ask`` what is allowed there."""

    def __init__(self, key: str, why: str, ask: str) -> None:
        super().__init__(why)
        self.key, self.why, self.ask = key, why, ask


class Caps:
    """All caps. False where there are none; then nothing is asked about any call."""

    def __init__(self, tables: Mapping[Kind, Mapping[str, Table]]) -> None:
        self.tables = tables
        self._tools = [(name, table) for name, table in tables.get("tool", {}).items() if name != DEFAULT]

    def __bool__(self) -> bool:
        return any(table for named in self.tables.values() for table in named.values())

    def of(self, whose: Whose) -> list[tuple[Key, Cap]]:
        """Every account that a call counts in, with its cap."""
        names: tuple[tuple[Kind, str], ...] = (("tenant", whose.tenant), ("user", whose.user), ("agent", whose.agent))
        found = [
            (Key(whose.tenant, kind, name, window), cap)
            for kind, name in names
            for window, cap in self._named(kind, name).items()
        ]
        if whose.tool:
            own = self._named("tool", whose.tool)
            found += [(Key(whose.tenant, "tool", whose.tool, window), cap) for window, cap in own.items()]
            found += [
                (Key(whose.tenant, "tool", pattern, window), cap)
                for pattern, table in self._tools
                if pattern != whose.tool and fnmatchcase(whose.tool, pattern)
                for window, cap in table.items()
            ]
        return found

    def cap(self, key: Key) -> Cap | None:
        """The cap of an account as it is configured now."""
        return self._named(key.kind, key.name).get(key.window)

    def named(self, tenant: str) -> Iterator[Key]:
        """The accounts of a tenant that the configuration names, used or not; of tenants its own alone."""
        for kind, tables in self.tables.items():
            # INVARIANT: nobody is told how another tenant is called (test_listings_tell_of_no_other_tenant).
            for name in (tenant,) if kind == "tenant" else tables:
                if kind == "tenant" or name != DEFAULT:
                    yield from (Key(tenant, kind, name, window) for window in self._named(kind, name))

    def _named(self, kind: Kind, name: str) -> Table:
        tables = self.tables.get(kind, {})
        own = tables.get(name, {})
        # A pattern is no tool: what every tool may by itself is nothing to it.
        whole = {} if kind == "tool" and _is_pattern(name) and name in tables else tables.get(DEFAULT, {})
        return {**whole, **own}


def parse_caps(raw: Mapping[str, Mapping[str, Mapping[str, str]]]) -> Caps:
    """The ``[caps]`` of a configuration. Raises :class:`BadCap` for one that could never bind or is not what it seems."""
    tables: dict[Kind, dict[str, Table]] = {}
    for kind, named in raw.items():
        if kind not in KINDS:
            raise BadCap(f"caps.{kind}", "there is no such key", "keys there are: " + ", ".join(KINDS))
        for name, windows in named.items():
            _require_name(kind, name)
            tables.setdefault(kind, {})[name] = _table(f'caps.{kind}."{name}"', windows)
    caps = Caps(tables)
    _require_effective(caps, tables)
    return caps


def parse_cap(text: str) -> Cap:
    """``usd=5,calls=2000``: what is not named is not capped. Raises a MALFORMED refusal or ValueError for a zero."""
    budget, named = parse_budget(text), units_named(text)
    amounts = {unit: getattr(budget, unit) for unit in UNITS if unit in named}
    if zero := [unit for unit, amount in amounts.items() if not amount]:
        raise ValueError(f"{zero[0]} is 0")
    return Cap(**amounts)


def units_named(text: str) -> frozenset[str]:
    """The units that an amount such as ``usd=5,calls=2000`` says something of, also where that is zero."""
    words = text.replace(",", " ").split()
    marks = zip(UNITS, ("usd", "tokens", "calls"), strict=True)
    return frozenset(unit for unit, mark in marks if any(mark in word for word in words))


def _table(key: str, windows: Mapping[str, str]) -> Table:
    if not windows:
        raise BadCap(key, "there is no cap in it", 'write such as day = "usd=5,calls=2000"')
    table: Table = {}
    for window, text in windows.items():
        if window not in WINDOWS:
            raise BadCap(f"{key}.{window}", "there is no such window", "windows are: " + ", ".join(WINDOWS))
        try:
            table[window] = parse_cap(text)
        except Refusal as bad:
            raise BadCap(f"{key}.{window}", bad.body.message, bad.body.ask) from None
        except ValueError as zero:
            raise BadCap(
                f"{key}.{window}", f"{zero}, which would refuse every call",
                "leave the unit out to leave it uncapped; to stop somebody use a policy",
            ) from None  # fmt: skip
    return table


def _require_name(kind: str, name: str) -> None:
    key = f'caps.{kind}."{name}"'
    if name == DEFAULT:
        return
    if kind == "tenant" and not is_tenant(name):
        raise BadCap(key, "no tenant can be called so", "use [a-z0-9][a-z0-9_-]*, at most 63 characters")
    if name != normalize(name):
        raise BadCap(key, "names are compared in their NFKC form, and this is another", f"write {normalize(name)!r}")
    if kind == "user" and (not name or len(name) > 256 or not name.isprintable()):
        raise BadCap(key, "no user is called so", "use 1 to 256 printable characters")
    if kind == "agent" and not is_principal(name):
        raise BadCap(key, "no agent can be called so", "use [a-z0-9][a-z0-9_-]*, at most 63 characters")
    if kind == "tool" and not _may_match(name):
        raise BadCap(key, "it matches no tool", "write such as mcp/mail/* or mcp/mail/send")


def _may_match(pattern: str) -> bool:
    if _is_pattern(pattern):
        return pattern.startswith(("mcp/", "*"))
    try:
        return parse_resource(pattern).kind == "mcp"
    except Refusal:
        return False


def _is_pattern(name: str) -> bool:
    return any(mark in name for mark in "*?[")


def _require_effective(caps: Caps, tables: Mapping[Kind, Mapping[str, Table]]) -> None:
    """Every cap may be met before one that encloses it: the same account's longer windows, wider patterns, the tenant."""
    for kind, named in tables.items():
        for name, own in named.items():
            around = [(f'caps.{kind}."{name}"', caps._named(kind, name))]
            if kind == "tool":
                for other in named:
                    if DEFAULT not in (name, other) and other < name and _within(name, other) and _within(other, name):
                        raise BadCap(
                            f'caps.tool."{name}"', f'it matches the same tools as caps.tool."{other}"', "say it once"
                        )
                around += [
                    (f'caps.tool."{p}"', t) for p, t in named.items() if p not in (name, DEFAULT) and _within(name, p)
                ]
            # Where tenants have caps of their own, what one of them allows may bind in another.
            if kind != "tenant" and set(tables.get("tenant", {})) <= {DEFAULT}:
                around += [("caps.tenant.default", tables.get("tenant", {}).get(DEFAULT, {}))]
            for place, table in around:
                _require_within((f'caps.{kind}."{name}"', {**caps._named(kind, name), **own}), place, table)


def _require_within(inner: tuple[str, Table], place: str, table: Table) -> None:
    key, own = inner
    for window, cap in own.items():
        for longer in WINDOWS[WINDOWS.index(window) + (place == key) :]:
            if longer in table and (unit := cap.exceeds(table[longer])):
                raise BadCap(
                    f"{key}.{window}", f"it could never bind: {place}.{longer} allows less in {unit}",
                    "make it smaller, or the other larger",
                )  # fmt: skip


def _within(name: str, pattern: str) -> bool:
    """Whether everything that ``name`` matches, ``pattern`` matches too, where that can be told from the texts."""
    inner = EVERY_TOOL if name == DEFAULT else name
    return not any(mark in pattern for mark in "?[") and fnmatchcase(inner, pattern)
