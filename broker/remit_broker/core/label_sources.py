"""Where labels come from: what the configuration declares of targets and of arguments, and of what detectors find.

A line of ``[labels]`` is a pattern over resources with labels. ``{customer_id}`` in a label stands for an argument of the call.
A pattern with ``#path`` behind it is about one argument: where it is given, what is sent has the labels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

import msgspec

from remit_broker.core.findings import REDACTABLE, class_of
from remit_broker.core.labels import is_label, normal, of_value
from remit_schemas.errors import Code, refusal

MAX_VALUES: Final = 32
"""Most values that one argument may name, where it is a list."""

MAX_FOUND: Final = 4
"""Most labels of one class or kind of findings."""
CLASSES: Final = REDACTABLE | {"scan"}

_TAKEN: Final = re.compile(r"([^{}]*)\{([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)\}")
_PATH: Final = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
_LONGEST_PREFIX: Final = 24


class BadLabels(Exception):  # noqa: N818 - a finding about a configuration
    """A line that declares no labels: its key, why, and what is allowed."""

    def __init__(self, key: str, why: str, ask: str) -> None:
        super().__init__(f"{key}: {why}")
        self.key, self.why, self.ask = key, why, ask


class Taken(msgspec.Struct, frozen=True):
    """A label that ends in a value of the call: ``prefix``, and the path of the argument."""

    prefix: str
    path: tuple[str, ...]


class Names(msgspec.Struct, frozen=True):
    """Labels as they are declared: fixed ones, and those that depend on the call."""

    fixed: frozenset[str] = frozenset()
    taken: tuple[Taken, ...] = ()

    def of(self, args: Mapping[str, Any]) -> frozenset[str]:
        """The labels for a call with ``args``. Refuses ARGUMENTS_INVALID where a value that they depend on is not there."""
        if not self.taken:
            return self.fixed
        return self.fixed.union(*(_labels(taken, args) for taken in self.taken))


class Declared(msgspec.Struct, frozen=True):
    """What is declared of one target: of its answers, and of the arguments at a path."""

    answers: Names = Names()
    arguments: tuple[tuple[tuple[str, ...], Names], ...] = ()

    def sent(self, args: Mapping[str, Any]) -> frozenset[str]:
        """The labels that arguments have by themselves."""
        return frozenset().union(*(names.of(args) for path, names in self.arguments if _at(args, path) is not None))


class Line(msgspec.Struct, frozen=True):
    """One line of ``[labels]``."""

    pattern: str
    path: tuple[str, ...]
    names: Names


class LabelSources(msgspec.Struct, frozen=True):
    """All that the configuration declares. ``found`` maps classes of findings (or kinds) to labels."""

    lines: tuple[Line, ...] = ()
    found: dict[str, frozenset[str]] = {}

    def of(self, resource: str) -> Declared:
        """What is declared of ``resource``: everything that matches adds up."""
        lines = [line for line in self.lines if fnmatchcase(resource, line.pattern)]
        answers = [line.names for line in lines if not line.path]
        return Declared(
            answers=Names(
                frozenset().union(*(names.fixed for names in answers)),
                tuple(taken for names in answers for taken in names.taken),
            ),
            arguments=tuple((line.path, line.names) for line in lines if line.path),
        )

    def of_findings(self, kinds: Iterable[str], replaced: Sequence[str] = ()) -> frozenset[str]:
        """The labels of what was found, but for what is replaced before it goes on (``replaced``: classes)."""
        found: set[str] = set()
        if self.found:
            kinds = frozenset(kinds)
            gone = frozenset(() if any(class_of(kind) == "scan" for kind in kinds) else replaced)
            for kind in kinds:
                if class_of(kind) not in gone:
                    found |= self.found.get(kind, frozenset()) | self.found.get(class_of(kind), frozenset())
        return frozenset(found)


NO_LABELS: Final = LabelSources()
"""Where nothing is declared."""


def parse_sources(table: Mapping[str, Sequence[str]], found: Mapping[str, Sequence[str]]) -> LabelSources:
    """The two tables of the configuration. Raises :class:`BadLabels`."""
    return LabelSources(
        tuple(_line(key, names) for key, names in table.items()),
        {kind: _found(kind, names) for kind, names in found.items()},
    )


def _found(kind: str, names: Sequence[str]) -> frozenset[str]:
    place = f"content.labels.{kind!r}"
    if class_of(kind) not in CLASSES:
        raise BadLabels(place, "nothing detects that", f"the classes are {', '.join(sorted(CLASSES))}")
    if len(names) > MAX_FOUND:
        raise BadLabels(place, f"has {len(names)} labels", f"at most {MAX_FOUND}")
    return _names(place, names, fixed=True).fixed


def _line(key: str, names: Sequence[str]) -> Line:
    place = f"labels.{key!r}"
    pattern, mark, path = key.rpartition("#") if "#" in key else (key, "", "")
    if not pattern.startswith(("agent/", "mcp/", "*")):
        raise BadLabels(place, "matches no resource", "write such as mcp/git/* or agent/researcher/*")
    if mark and not _PATH.fullmatch(path):
        raise BadLabels(place, f"{path!r} names no argument", "write such as mcp/mail/send#body or …#customer.id")
    return Line(pattern, tuple(path.split(".")) if mark else (), _names(place, names))


def _names(place: str, names: Sequence[str], *, fixed: bool = False) -> Names:
    plain, taken = set(), []
    for name in names:
        if (found := _TAKEN.fullmatch(name)) is not None and not fixed:
            prefix = found[1]
            if not prefix.endswith(":") or not is_label(prefix) or len(prefix) > _LONGEST_PREFIX:
                raise BadLabels(
                    place, f"{name!r} has no family before its value", "write such as customer:{customer_id}"
                )
            taken.append(Taken(prefix, tuple(found[2].split("."))))
        elif is_label(name):
            plain.add(name)
        else:
            raise BadLabels(place, f"{name!r} is no label", "use lower-case letters, digits, _ . : / -")
    return Names(normal(plain), tuple(taken))


def _labels(taken: Taken, args: Mapping[str, Any]) -> frozenset[str]:
    value = _at(args, taken.path)
    values = value if isinstance(value, list) else [value]
    # INVARIANT: a call that does not say whose data it is about is not made (test_a_call_that_names_no_customer_is_refused).
    if not 0 < len(values) <= MAX_VALUES or not all(type(one) in (str, int) and one != "" for one in values):
        name = ".".join(taken.path)
        raise refusal(
            Code.ARGUMENTS_INVALID, f"the argument {name} must say whose data this is about: a text or a whole number",
            rule="labels.argument", ask=f"give {name}, or a list of at most {MAX_VALUES} of them",
        )  # fmt: skip
    return frozenset(of_value(taken.prefix, one) for one in values)


def _at(args: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        args = args.get(name) if isinstance(args, Mapping) else None
    return args
