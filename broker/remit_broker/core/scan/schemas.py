"""What the schema of a tool lets through: the wider it is, the more of what a model was talked into arrives."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from remit_broker.core.scan.finding import Finding, Severity, quoted, shown_names, words

MAX_DEPTH: Final = 24
MAX_NODES: Final = 4_000
"""Parts of one schema that are looked at."""


class Argument(NamedTuple):
    """One string argument: where it is in the schema, its name in words, and what is said of it."""

    pointer: str
    words: frozenset[str]
    schema: dict[str, Any]

    @property
    def bound(self) -> bool:
        """Whether the schema says which values there are."""
        return any(key in self.schema for key in ("enum", "const", "pattern", "$ref"))


class _Risk(NamedTuple):
    words: frozenset[str]
    severity: Severity
    what: str
    ask: str


def _risk(names: str, severity: Severity, what: str, ask: str) -> _Risk:
    return _Risk(words(names), severity, what, ask)


RISKS: Final = (
    _risk("sql query statement cypher graphql aql", "medium", "a query in a language of its own",
          "have the server take values and build the query itself, or permit only what starts with select"),
    _risk("command cmd shell script code expression eval exec program executable argv", "high", "something that is run",
          "have the server offer named operations; else approve each call, and contain the server"),
    _risk("path file filename filepath directory folder dir root", "medium", "a path",
          "constrain it in scopes: {\"path\":{\"prefix\":\"docs/\"}}, and give the server declared folders only"),
    _risk("template html markup xpath jsonpath regex regexp", "low", "something that is interpreted",
          "have the server limit its size and what it may refer to"),
)  # fmt: skip
NETWORK: Final = words("url uri href endpoint webhook callback host hostname domain address origin proxy")
SECRETS: Final = words("password passwd passphrase secret token apikey credential credentials pin otp cvv ssn")


def parts_of(name: str) -> list[str]:
    """The words of a name in order: ``baseURL`` and ``base_url`` are ``base`` and ``url``."""
    return [part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+", name[:256])]


def words_of(name: str) -> frozenset[str]:
    """The words of a name, and all of them together: ``api_key`` is ``apikey`` too."""
    parts = parts_of(name)
    return frozenset([*parts, "".join(parts)])


def arguments(schema: Any) -> Iterator[Argument]:
    """Every string argument of a schema, also those of objects and lists in it."""
    for pointer, name, part in _named(schema):
        kinds = part.get("type", "string" if "properties" not in part and "items" not in part else "")
        if "string" in (kinds if isinstance(kinds, list) else [kinds]):
            yield Argument(pointer, words_of(name), part)


def wide(where: str, schema: Any) -> Iterator[Finding]:
    """What is wider in ``schema`` than it has to be."""
    if not isinstance(schema, dict):
        return
    for argument in arguments(schema):
        yield from _free(where, argument)
    if _open(schema):
        yield Finding(
            rule="schema.open", severity="low" if schema.get("properties") else "medium", where=f"{where}/inputSchema",
            message="takes arguments that it does not declare", ask='have the server say "additionalProperties": false',
        )  # fmt: skip
    endless = [pointer for pointer, part in _unbounded(schema)]
    if endless:
        yield Finding(
            rule="schema.unbounded", severity="low", where=f"{where}/inputSchema",
            message="texts or lists of any length", evidence=shown_names(endless),
            ask="have the server say maxLength and maxItems; a constraint max_len in a scope does the same",
        )  # fmt: skip


def _free(where: str, argument: Argument) -> Iterator[Finding]:
    at = f"{where}/inputSchema{argument.pointer}"
    if argument.words & SECRETS:
        yield Finding(
            rule="schema.secret", severity="medium", where=at, message="asks the model for a secret",
            evidence=quoted(argument.schema.get("description", "")),
            ask="give the secret to the server itself: remit servers add --env, or a credential per user",
        )  # fmt: skip
    if argument.bound:
        return
    for risk in RISKS:
        if argument.words & risk.words:
            yield Finding(
                rule="schema.free", severity=risk.severity, where=at, message=f"takes {risk.what} as free text",
                evidence=quoted(argument.schema.get("description", "")), ask=risk.ask,
            )  # fmt: skip
            return


def _open(schema: dict[str, Any]) -> bool:
    return schema.get("additionalProperties", True) not in (False,) and schema.get("unevaluatedProperties") is not False


def _unbounded(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for pointer, _, part in _named(schema):
        kind = part.get("type")
        bound = any(key in part for key in ("enum", "const", "format", "maxLength", "pattern"))
        if (kind == "string" and not bound) or (kind == "array" and "maxItems" not in part):
            yield pointer, part


def _named(schema: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every subschema that has a name, with its pointer. Bounded: a hostile schema is only looked at so far."""
    pending: list[tuple[str, str, Any, int]] = [("", "", schema, 0)]
    for _ in range(MAX_NODES):
        if not pending:
            return
        pointer, name, part, depth = pending.pop()
        if not isinstance(part, dict) or depth > MAX_DEPTH:
            continue
        if name:
            yield pointer, name, part
        properties = part.get("properties")
        for key, below in properties.items() if isinstance(properties, dict) else ():
            step = str(key).replace("~", "~0").replace("/", "~1")
            pending.append((f"{pointer}/properties/{step}"[:400], str(key), below, depth + 1))
        for key in ("items", "additionalProperties", "not"):
            pending.append((f"{pointer}/{key}"[:400], name, part.get(key), depth + 1))
        for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
            for index, below in enumerate(part[key]) if isinstance(part.get(key), list) else ():
                pending.append((f"{pointer}/{key}/{index}"[:400], name, below, depth + 1))
