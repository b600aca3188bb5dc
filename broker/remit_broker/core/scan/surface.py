"""The server as a whole: what was seen on the wire, judged. What does the looking is in ``edges/scan``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from remit_broker.core.scan.finding import Finding, Severity, quoted

SHORT_SESSION: Final = 20
"""Characters of a session id below which it may be guessed."""


class Talk(msgspec.Struct, kw_only=True):
    """What a conversation with the server came to. ``breaks`` are (rule, severity, message, evidence) of the protocol."""

    server: dict[str, str] = {}
    protocol: str = ""
    capabilities: dict[str, Any] = {}
    instructions: str = ""
    tools: list[dict[str, Any]] = []
    resources: list[dict[str, Any]] = []
    prompts: list[dict[str, Any]] = []
    session: str | None = None
    reached: bool = False
    breaks: list[tuple[str, Severity, str, str]] = []

    def broke(self, rule: str, severity: Severity, message: str, evidence: object = "") -> None:
        """Note that the protocol was broken."""
        if len(self.breaks) < 200:
            self.breaks.append((rule, severity, message, quoted(evidence)))


_ASKS: Final = {
    "protocol.silent": "see that the command or URL is an MCP server, and what it writes on its standard error",
    "protocol.noise": "have it write to standard error only: what is not a message breaks clients",
    "protocol.id": "do not let this server in: an answer that is taken for another's is how data leaks",
    "protocol.unasked": "do not let this server in: it asks before anybody called it",
    "protocol.flood": "do not let this server in: it can keep a client busy for ever",
    "protocol.pages": "do not let this server in: a client that lists its tools never ends",
    "protocol.size": "have it say less; a client may not survive it",
    "protocol.changes": "pin it, and look at each change: remit servers list",
    "protocol.version": "use a current version of it",
    "protocol.shape": "tell its author; clients differ in what they make of it",
    "protocol.error": "tell its author",
    "protocol.ping": "tell its author: clients ask by it whether the server still lives",
    "protocol.unknown_method": "tell its author: what it does not know it must refuse",
}


def judged(talk: Talk) -> Iterator[Finding]:
    """The findings of a conversation."""
    for rule, severity, message, evidence in talk.breaks:
        yield Finding(
            rule=rule, severity=severity, where="server", message=message, evidence=evidence, ask=_ASKS.get(rule, "")
        )
    if talk.session is not None and len(talk.session) < SHORT_SESSION:
        yield Finding(
            rule="http.session", severity="medium", where="server", message="its session ids are short enough to be guessed",
            evidence=f"{len(talk.session)} characters", ask="have it draw at least 128 random bits",
        )  # fmt: skip
    if talk.session is not None and not all("!" <= char <= "~" for char in talk.session):
        yield Finding(
            rule="http.session", severity="low", where="server", message="its session ids are not visible ASCII",
            evidence=quoted(talk.session), ask="tell its author",
        )  # fmt: skip
