"""From the claims of a validated token to user, tenant, roles and groups: a table of the configuration, no code.

A value is taken from a claim by its path (``realm_access.roles``; a name that is not plain is quoted as in TOML:
``resource_access."my.app".roles``; a URL is one name), or stands in the table itself. Nothing is guessed: a claim of
another type than expected refuses the token, and so does a claim that the issuer says it left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

import msgspec

from remit_schemas.names import is_tenant

MAX_NAME: Final = 256
"""Longest name of a user, role or group in characters."""
MAX_NAMES: Final = 200
"""Most roles, and most groups, of one user."""
MAX_BYTES: Final = 6 * 1024
"""Most bytes of roles and groups together: they stand in the first record of a task, which has at most 16 KiB."""

_BARE: Final = re.compile(r"[A-Za-z0-9_:-]+")
_SEGMENT: Final = re.compile(r'([A-Za-z0-9_:-]+)|"([^"\\]+)"')

Texts = str | tuple[str, ...]
Path = tuple[str, ...]


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a value comes from.

    ``claim`` is one path or several: for a single value the first that is there, for a list all of them together. ``value`` stands
    for what no claim says. ``split`` divides a text, such as ``scope``. ``map`` translates what the issuer says, and ``unmapped``
    tells what becomes of a value that it does not name; left out, a user or tenant is refused, a role or group is dropped.
    ``prefix`` is put before the result. ``required`` refuses a user without any; a user and a tenant are always required.
    """

    claim: Texts = ()
    value: Texts = ()
    split: str = ""
    map: dict[str, Texts] = {}
    unmapped: Literal["keep", "drop", "refuse"] | None = None
    prefix: str = ""
    required: bool = False


class ClaimsTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[issuers.claims]``. A text is short for ``{ claim = "…" }``."""

    user: str | Source = "sub"
    tenant: str | Source = Source(value="default")
    roles: str | Source = Source()
    groups: str | Source = Source()


class Mapped(msgspec.Struct, frozen=True):
    """Who the user is here."""

    user: str
    tenant: str
    roles: tuple[str, ...]
    groups: tuple[str, ...]


class BadMapping(Exception):  # noqa: N818 - a finding about a configuration
    """A mapping that cannot be meant. ``key`` is where, ``ask`` what is allowed there."""

    def __init__(self, key: str, why: str, ask: str) -> None:
        super().__init__(why)
        self.key, self.why, self.ask = key, why, ask


class Unmapped(Exception):  # noqa: N818 - a finding about a token
    """The claims of a token do not say who somebody is. ``kind`` is ``claim`` or ``overage``; no text of the token is in it."""

    def __init__(self, kind: Literal["claim", "overage"], why: str, ask: str) -> None:
        super().__init__(why)
        self.kind, self.why, self.ask = kind, why, ask


def parse_path(text: str) -> Path:
    """``realm_access.roles`` as ``("realm_access", "roles")``. Raises ``ValueError``."""
    if "://" in text and '"' not in text:
        return (text,)
    segments, at = [], 0
    while match := _SEGMENT.match(text, at):
        segments.append(match[1] or match[2])
        at = match.end()
        if at == len(text):
            return tuple(segments)
        if text[at] != ".":
            break
        at += 1
    raise ValueError(text)


def written(path: Path) -> str:
    """A path as it is written."""
    if len(path) == 1 and "://" in path[0]:
        return path[0]
    return ".".join(name if _BARE.fullmatch(name) else f'"{name}"' for name in path)


def as_source(given: str | Source) -> Source:
    """A text is short for the claim of that name."""
    return Source(claim=given) if isinstance(given, str) else given


def paths_of(source: Source) -> tuple[Path, ...]:
    """The paths of a source that was checked."""
    return tuple(parse_path(text) for text in _texts(source.claim))


def check_mapping(mapping: ClaimsTable) -> None:
    """Raises :class:`BadMapping` for a table that cannot be meant."""
    for name in ("user", "tenant", "roles", "groups"):
        _check(name, as_source(getattr(mapping, name)), single=name in ("user", "tenant"))


def _check(name: str, source: Source, *, single: bool) -> None:
    for text in _texts(source.claim):
        try:
            parse_path(text)
        except ValueError:
            raise BadMapping(
                f"claims.{name}",
                f"{text!r} is no path of a claim",
                'write such as realm_access.roles, or "my.claim" quoted',
            ) from None
    if single and bool(source.claim) == bool(source.value):
        raise BadMapping(
            f"claims.{name}", "it needs a claim or a value, and not both", 'write { claim = "…" } or a value'
        )
    if single and (
        source.split or len(_texts(source.value)) > 1 or any(len(_texts(to)) != 1 for to in source.map.values())
    ):
        raise BadMapping(f"claims.{name}", "it is one value, not several", "write one text")
    if source.unmapped is not None and not source.map:
        raise BadMapping(f"claims.{name}.unmapped", "there is no map", "add a map, or leave unmapped out")
    for said in (*_texts(source.value), source.prefix, *(to for tos in source.map.values() for to in _texts(tos))):
        if said and not _is_name(said):
            raise BadMapping(f"claims.{name}", f"{said!r} is no name", f"printable, at most {MAX_NAME} characters")
    if name == "tenant":
        tos = (*_texts(source.value), *(to for tos in source.map.values() for to in _texts(tos)))
        for to in tos:
            if not is_tenant(source.prefix + to):
                raise BadMapping("claims.tenant", f"{source.prefix + to!r} is not a tenant", "use [a-z0-9][a-z0-9_-]*")


def map_claims(mapping: ClaimsTable, claims: Mapping[str, Any]) -> Mapped:
    """Who the user of ``claims`` is. Raises :class:`Unmapped`, whose text names the claim."""
    user = _single("user", as_source(mapping.user), claims)
    tenant = _single("tenant", as_source(mapping.tenant), claims)
    if not is_tenant(tenant):
        what = _asked(as_source(mapping.tenant))
        raise Unmapped("claim", f"the claim {what} does not name a tenant", "add what it says to claims.tenant.map")
    roles = _several("roles", as_source(mapping.roles), claims)
    groups = _several("groups", as_source(mapping.groups), claims)
    # INVARIANT: whoever is in more groups than can be recorded is refused, never let through with some of them
    # (test_more_groups_than_can_be_recorded_are_refused_and_not_cut_off).
    if not are_names(roles, groups):
        raise Unmapped(
            "overage",
            f"it names more roles and groups than a task records ({MAX_NAMES} of each, {MAX_BYTES} bytes together)",
            "name in claims.roles.map and claims.groups.map those that policies ask for; others are then dropped",
        )
    return Mapped(user, tenant, roles, groups)


def are_names(roles: tuple[str, ...], groups: tuple[str, ...]) -> bool:
    """Whether these can be a user's roles and groups: plain names, not too many of them."""
    names = (*roles, *groups)
    few = max(len(roles), len(groups)) <= MAX_NAMES and sum(len(name.encode()) + 3 for name in names) <= MAX_BYTES
    return few and all(map(_is_name, names))


def _single(name: str, source: Source, claims: Mapping[str, Any]) -> str:
    said: Any = source.value if isinstance(source.value, str) else (source.value or ("",))[0]
    if source.claim:
        said = next((value for path in paths_of(source) if (value := _at(claims, path)) is not None), None)
        if said is None or said == "":
            _left_out(source, claims)
            raise Unmapped(
                "claim", f"the claim {_asked(source)} is not there, and it says who the {name} is",
                f"have the issuer send it, or name another claim in claims.{name}",
            )  # fmt: skip
        if not isinstance(said, str) or not _is_name(said):
            raise Unmapped(
                "claim", f"the claim {_asked(source)} is no printable text of at most {MAX_NAME} characters",
                f"name another claim in claims.{name}",
            )  # fmt: skip
    found = _translated(name, source, said, "refuse")
    if len(found) != 1 or not _is_name(source.prefix + found[0]):
        raise Unmapped(
            "claim", f"what the claim {_asked(source)} says is not in the map", f"add it to claims.{name}.map"
        )
    return source.prefix + found[0]


def _several(name: str, source: Source, claims: Mapping[str, Any]) -> tuple[str, ...]:
    said = list(_texts(source.value))
    if source.claim:
        # INVARIANT: groups that the issuer left out are not taken for none (test_groups_that_the_issuer_left_out_are_not_none).
        _left_out(source, claims)
        for path in paths_of(source):
            said += _listed(_at(claims, path), path, source.split)
    names = {source.prefix + to for one in said for to in _translated(name, source, one, "drop")}
    if source.required and not names:
        raise Unmapped(
            "claim",
            f"the claim {_asked(source)} gives no {name}",
            f"have the issuer send it, or look at claims.{name}.map",
        )
    if not all(_is_name(one) for one in names):
        raise Unmapped(
            "claim", f"the claim {_asked(source)} holds what cannot be a name", "have the issuer send plain names"
        )
    return tuple(sorted(names))


def _listed(value: Any, path: Path, split: str) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        return [part for part in value.split(split) if part] if split else [value]
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return value
    raise Unmapped(
        "claim",
        f"the claim {written(path)} is neither a text nor a list of texts",
        "name the claim that holds the names",
    )


def _translated(name: str, source: Source, said: str, otherwise: Literal["drop", "refuse"]) -> tuple[str, ...]:
    if not source.map:
        return (said,)
    if said in source.map:
        return _texts(source.map[said])
    if (source.unmapped or otherwise) == "refuse":
        raise Unmapped(
            "claim", f"what the claim {_asked(source)} says is not in the map", f"add it to claims.{name}.map"
        )
    return (said,) if source.unmapped == "keep" else ()


def _left_out(source: Source, claims: Mapping[str, Any]) -> None:
    """Refuses where the issuer says that it left a claim out because it would be too long (OIDC Core §5.6.2; Entra ID)."""
    elsewhere = claims.get("_claim_names")
    names = set(elsewhere) if isinstance(elsewhere, dict) else set()
    if claims.get("hasgroups") not in (None, False, "false"):
        names.add("groups")
    for path in paths_of(source):
        if path[0] in names:
            raise Unmapped(
                "overage",
                f"the issuer left the claim {written(path)} out because the user has too many of them (overage)",
                "have it send fewer: in Entra ID, groups assigned to the application, or app roles; then map those",
            )


def _at(claims: Mapping[str, Any], path: Path) -> Any:
    """The value at ``path``; None where something on the way is missing or no object."""
    value: Any = claims
    for name in path:
        if not isinstance(value, Mapping) or name not in value:
            return None
        value = value[name]
    return value


def _asked(source: Source) -> str:
    return " or ".join(written(path) for path in paths_of(source)) or "(a fixed value)"


def _texts(given: Texts) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else given


def _is_name(text: str) -> bool:
    return 0 < len(text) <= MAX_NAME and text.isprintable() and text == text.strip()


def names_in(mapping: ClaimsTable) -> Iterator[Path]:
    """Every path that a mapping reads."""
    for given in (mapping.user, mapping.tenant, mapping.roles, mapping.groups):
        yield from paths_of(as_source(given))
