"""The form of a finding and of a report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal

import msgspec

Severity = Literal["info", "low", "medium", "high", "critical"]
SEVERITIES: Final[tuple[Severity, ...]] = ("info", "low", "medium", "high", "critical")

MAX_EVIDENCE: Final = 240
"""Characters of what a server said that a finding quotes."""
MAX_FINDINGS: Final = 2_000
"""Findings in one report; what exceeds this is counted. A server with ten thousand bad tools is bad at the first hundred."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One gap. ``rule`` names what is looked for, ``where`` the tool or endpoint (with an RFC 6901 pointer into it).

    ``evidence`` quotes the server: every character that a terminal or a page could obey is an escape in it.
    """

    rule: str
    severity: Severity
    where: str
    message: str
    evidence: str = ""
    ask: str = ""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What was looked at and what was found, the worst first. ``seconds`` is how long it took, ``contained`` how it ran."""

    target: str
    transport: Literal["stdio", "http"]
    at: str
    seconds: float
    contained: str = ""
    server: dict[str, str] = {}
    capabilities: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    resources: int = 0
    prompts: int = 0
    pin: str = ""
    findings: tuple[Finding, ...] = ()
    left_out: int = 0

    @property
    def worst(self) -> Severity | None:
        """The highest severity; None where nothing was found."""
        return self.findings[0].severity if self.findings else None

    def counts(self) -> dict[Severity, int]:
        """How many of each severity, the worst first."""
        return {level: sum(one.severity == level for one in self.findings) for level in reversed(SEVERITIES)}

    def reaches(self, level: Severity) -> bool:
        """Whether something at ``level`` or above was found."""
        return any(rank(one.severity) >= rank(level) for one in self.findings)

    def told(self) -> dict[str, Any]:
        """The report as JSON."""
        return {**msgspec.to_builtins(self), "worst": self.worst, "counts": self.counts()}


def rank(severity: Severity) -> int:
    """0 for ``info`` to 4 for ``critical``."""
    return SEVERITIES.index(severity)


def sorted_findings(found: Iterable[Finding]) -> tuple[tuple[Finding, ...], int]:
    """The worst first, each once, and how many there are beyond :data:`MAX_FINDINGS`."""
    unique = sorted(dict.fromkeys(found), key=lambda one: (-rank(one.severity), one.rule, one.where))
    return tuple(unique[:MAX_FINDINGS]), max(0, len(unique) - MAX_FINDINGS)


def quoted(text: object, around: tuple[int, int] | None = None) -> str:
    """``text``, or what stands around a place in it, short and with everything that is not shown as an escape.

    INVARIANT: nothing that a server said acts on whoever reads the report (test_nothing_of_a_server_acts_on_the_reader).
    """
    said = str(text)
    if around is not None:
        start = max(0, around[0] - MAX_EVIDENCE // 3)
        said = ("…" if start else "") + said[start : start + MAX_EVIDENCE]
    shown = "".join(escaped(char) for char in said[: MAX_EVIDENCE + 1])
    return shown if len(shown) <= MAX_EVIDENCE else shown[: MAX_EVIDENCE - 1] + "…"


def escaped(char: str) -> str:
    """A character as it is shown."""
    return char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode("ascii")


def shown_names(names: Sequence[str], most: int = 8) -> str:
    """Some names on one line."""
    rest = len(names) - most
    return ", ".join(quoted(name)[:80] for name in names[:most]) + (f" and {rest} more" if rest > 0 else "")


def words(text: str) -> frozenset[str]:
    """A set of words, written as a text."""
    return frozenset(text.split())
