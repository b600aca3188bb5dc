"""Reading policy files: from text to policies whose annotations mean something, or an error that names file and line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import cedarpy
import msgspec

from remit_broker.adapters.errors import ConfigError
from remit_broker.core.obligations import BadObligation, parse_approval, parse_cap, parse_classes, parse_labels
from remit_broker.core.policy import ACTIONS, OBLIGING, Rule
from remit_broker.core.question import ATTRIBUTES
from remit_broker.core.unseen import guarded
from remit_schemas.errors import Code
from remit_schemas.names import is_principal, is_tenant

MAX_FILE: Final = 1 << 20
ANNOTATIONS: Final = ("id", "reason", "ask", "code", "approve", "redact", "cap", "label", "endorse")
OBLIGATIONS: Final = ("approve", "redact", "cap", "label", "endorse")
CODES: Final = (Code.POLICY_DENIED, Code.CONTENT_DENIED)

_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
# A comment, a string, or the end of a policy: nothing else in Cedar's grammar can hold a semicolon.
_LEXEME = re.compile(r'//[^\n]*|"(?:[^"\\]|\\.)*"|;', re.DOTALL)
_COMMENT = re.compile(r"//[^\n]*")


class Within(NamedTuple):
    """Whose requests the policies of a folder speak of: those of one tenant or of one server; ``""`` of kind: all."""

    kind: Literal["", "tenant", "server"] = ""
    name: str = ""


ALL: Final = Within()


class Source(NamedTuple):
    """One policy as it was written: where, its text, what its annotations say, Cedar's JSON form of it, and whom it is about."""

    where: str
    text: str
    rule: Rule
    body: dict[str, Any]
    within: Within = ALL


def read_folder(folder: Path) -> dict[str, str]:
    """The texts of ``*.cedar`` in ``folder``, ``tenant/<name>`` and ``server/<name>``, by their paths. Raises :class:`ConfigError`."""
    if not folder.is_dir():
        raise ConfigError(f"there is no policy folder at {folder}", "remit init writes one, with starter policies")
    texts = {}
    for file in policy_files(folder):
        name = file.relative_to(folder).as_posix()
        within(folder, name)
        try:
            if file.stat().st_size > MAX_FILE:
                raise ConfigError(f"{file} is larger than {MAX_FILE} bytes", "split it")
            texts[name] = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file} cannot be read: {error}", "policy files are UTF-8 text") from None
    if not texts:
        raise ConfigError(
            f"{folder} has no policies, so every call would be denied",
            "put at least one file named *.cedar there; remit init writes starter policies",
        )
    return texts


def policy_files(folder: Path) -> list[Path]:
    """What is read: not the cases, and no hidden file, such as an editor's copy of one that it writes."""
    found = sorted(folder.rglob("*.cedar"))
    parts = ((file, file.relative_to(folder).parts) for file in found)
    return [file for file, names in parts if names[0] != "tests" and not any(name.startswith(".") for name in names)]


def within(folder: Path, name: str) -> Within:
    """Whose requests a file speaks of, by its path. Raises :class:`ConfigError` for one that would be read by nobody."""
    match name.split("/"):
        case [_]:
            return ALL
        case ["tenant", tenant, _] if is_tenant(tenant):
            return Within("tenant", tenant)
        case ["server", server, _] if is_principal(server):
            return Within("server", server)
    # A misspelt folder would otherwise hold policies that silently do nothing.
    raise ConfigError(
        f"{folder / name} is in no folder that policies are read from",
        "put it into the policy folder itself, tenant/NAME (one tenant's requests) or server/NAME (those for one server)",
    )


def read_policies(folder: Path, texts: dict[str, str], schema: cedarpy.Schema) -> list[Source]:
    """Every policy of ``texts``, each valid under ``schema`` and with an id of its own. Raises :class:`ConfigError`."""
    sources, wrong = look_through(folder, texts, schema)
    if wrong:
        raise wrong[0]
    return sources


def look_through(folder: Path, texts: dict[str, str], schema: cedarpy.Schema) -> tuple[list[Source], list[ConfigError]]:
    """The policies of ``texts`` that are valid, and what is wrong with the others."""
    sources: dict[str, Source] = {}
    wrong: list[ConfigError] = []
    for name, text in texts.items():
        for line, statement in _statements(text):
            try:
                source = _source(f"{folder / name}:{line}", statement, schema)._replace(within=within(folder, name))
            except ConfigError as bad:
                wrong.append(bad)
                continue
            earlier = sources.setdefault(source.rule.id, source)
            if earlier is not source:
                what = f"{source.where}: the id {source.rule.id!r} is taken by the policy at {earlier.where}"
                wrong.append(ConfigError(what, "give every policy an @id of its own"))
    if not sources and not wrong:
        what = f"the files in {folder} hold no policies, so every call would be denied"
        wrong.append(ConfigError(what, "write at least one"))
    return list(sources.values()), wrong


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """The policies in a file, each with the number of the line it begins on. What is left over at the end counts as one."""
    start = 0
    for lexeme in _LEXEME.finditer(text):
        if lexeme[0] == ";":
            yield _placed(text, start, lexeme.end())
            start = lexeme.end()
    if _COMMENT.sub("", text[start:]).strip():
        yield _placed(text, start, len(text))


def _placed(text: str, start: int, end: int) -> tuple[int, str]:
    while (blank := re.compile(r"\s+|//[^\n]*").match(text, start, end)) is not None:
        start = blank.end()
    return text.count("\n", 0, start) + 1, text[start:end]


def _source(where: str, text: str, schema: cedarpy.Schema) -> Source:
    body = _parsed(where, text)
    rule = _rule(where, body)
    found = cedarpy.validate_policies(text, schema)
    if not found.validation_passed:
        what = "; ".join(_plain(error.error) for error in found.errors) or "it is not valid under the schema"
        raise ConfigError(f"{where}: policy {rule.id!r}: {what}", _allowed(what))
    return Source(where, text, rule, body)


def _parsed(where: str, text: str) -> dict[str, Any]:
    try:
        parsed = json.loads(cedarpy.policies_to_json_str(text))
    except ValueError as error:
        what = str(error).partition("\n")[0]
        raise ConfigError(f"{where}: this is not a Cedar policy: {what}", "a policy ends with a semicolon") from None
    policies = list(parsed["staticPolicies"].values())
    if parsed["templates"] or len(policies) != 1:
        raise ConfigError(
            f"{where}: templates (?principal, ?resource) are not used here", "write a policy without slots"
        )
    policy: dict[str, Any] = policies[0]
    return policy


def _rule(where: str, body: dict[str, Any]) -> Rule:
    """What the annotations say. One that is unknown, misspelt or without effect is an error: nothing is ignored."""
    said: dict[str, str | None] = body.get("annotations", {})
    name = said.get("id")
    if not isinstance(name, str) or not _ID.fullmatch(name):
        raise ConfigError(
            f"{where}: a policy {'without an @id' if not name else f'has the @id {name!r}'}",
            "give it one such as @id(\"no-mail-after-web\"): a-z, 0-9, - and _, at most 64",
        )  # fmt: skip
    at = f"{where}: policy {name!r}"
    if unknown := sorted(set(said) - set(ANNOTATIONS)):
        raise ConfigError(f"{at} has an unknown annotation @{unknown[0]}", f"known are @{', @'.join(ANNOTATIONS)}")
    if empty := [key for key in ("reason", *said) if not (said.get(key) or "").strip()]:
        raise ConfigError(f"{at} has no text in @{empty[0]}", f'write @{empty[0]}("…")')
    forbid = body["effect"] == "forbid"
    if misplaced := [key for key in (OBLIGATIONS if forbid else ("code",)) if key in said]:
        raise ConfigError(f"{at}: @{misplaced[0]} has no meaning on a {body['effect']}",
                          "@approve, @redact, @cap, @label and @endorse belong to a permit, @code to a forbid")  # fmt: skip
    _fitting(at, body, said)
    try:
        return Rule(
            id=name,
            effect="forbid" if forbid else "permit",
            reason=said["reason"] or "",
            ask=said.get("ask") or "",
            code=_code(at, said.get("code")),
            approve=parse_approval(name, text) if (text := said.get("approve")) else None,
            redact=parse_classes(text) if (text := said.get("redact")) else (),
            cap=parse_cap(text) if (text := said.get("cap")) else None,
            label=parse_labels(text) if (text := said.get("label")) else (),
            endorse=parse_labels(text) if (text := said.get("endorse")) else (),
        )
    except BadObligation as bad:
        raise ConfigError(f"{at}: {bad.why}", bad.ask) from None


def _fitting(at: str, body: dict[str, Any], said: dict[str, str | None]) -> None:
    """Obligations only where they can be kept. Raises :class:`ConfigError`."""
    if "endorse" in said and "approve" not in said:
        raise ConfigError(f"{at} takes labels away, and nobody vouches for it", "only with @approve beside it")
    for key, what in (("approve", "asks for approval of"), ("cap", "caps")):
        if key in said and (beside := sorted(_actions(body) - OBLIGING)):
            raise ConfigError(f"{at} {what} {_BESIDE.get(beside[0], beside[0])}",
                              'limit it: action == Action::"call", or action in [Action::"call", Action::"delegate"]')  # fmt: skip


_BESIDE: Final = {
    "release": "an answer, which has then already happened",
    "list": "a listing, which calls nothing",
    "approve": "an approval",
}


def _code(at: str, said: str | None) -> Code:
    if said is None:
        return Code.POLICY_DENIED
    if said not in CODES:
        raise ConfigError(f"{at} has the @code {said!r}", f"allowed are {' and '.join(CODES)}")
    return Code(said)


def _actions(body: dict[str, Any]) -> set[str]:
    scope = body["action"]
    named = [scope["entity"]] if "entity" in scope else scope.get("entities")
    return set(ACTIONS) if named is None else {entity["id"] for entity in named}


def _plain(error: str) -> str:
    return re.sub(r"^for policy `[^`]*`, ", "", error.partition("\n")[0])


def _allowed(what: str) -> str:
    if "action" in what.lower() and "context" not in what:
        return f"the actions are {', '.join(ACTIONS)}, with an Agent (approve: a User) as principal and a Tool or Skill as resource"
    for entity, names in ATTRIBUTES.items():
        if f"`{entity}`" in what or (entity == "context" and "in context" in what):
            return f"{entity} has {', '.join(names)}"
    return "docs/policy.md lists everything a policy can speak of"


BESIDE: Final = "#unseen"
"""Of the id in Cedar of what is asked beside a forbid: whether something it looks at cannot be seen."""


def rules_of(sources: Iterable[Source]) -> dict[str, Rule]:
    """The rules by their ids in Cedar."""
    sources = tuple(sources)
    rules = {source.rule.id: source.rule for source in sources}
    unseen = {
        source.rule.id + BESIDE: msgspec.structs.replace(
            source.rule,
            reason=f"{source.rule.reason}: what this depends on in the arguments cannot be seen",
            ask="send it shorter, and as the tool's schema declares it: a text, a whole number, true or false, or a list of those",
        )
        for source in sources
    }
    return {**rules, **unseen}


def policy_set(sources: list[Source]) -> cedarpy.PolicySet:
    """One set in which every policy has its own ``@id`` as its id in Cedar, so that diagnostics name it."""
    bodies: dict[str, dict[str, Any]] = {}
    for source in sources:
        bodies[source.rule.id], beside = guarded(source.body)
        if beside is not None:
            bodies[source.rule.id + BESIDE] = beside
    document = {
        "staticPolicies": bodies,
        "templates": {},
        "templateLinks": [],
    }
    return cedarpy.PolicySet.from_json_str(msgspec.json.encode(document).decode())
