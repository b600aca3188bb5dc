"""What a server says of its tools, resources and prompts, as a model will read it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from remit_broker.core.lookalike import hidden, skeleton, twins
from remit_broker.core.scan.abilities import abilities
from remit_broker.core.scan.finding import Finding, Severity, quoted, shown_names, words
from remit_broker.core.scan.schemas import wide
from remit_broker.core.schema_cost import looks
from remit_schemas.errors import Refusal
from remit_schemas.names import is_op, normalize

LONGEST: Final = 64
"""Characters of a tool's name that common clients take."""
LARGE: Final = 8 * 1024
"""Characters of one definition from which on it crowds out what else the model is to read."""
MAX_STRINGS: Final = 20_000
_LEVELS: Final = 16
_TOO_OFTEN: Final = 50_000
"""Looks at one item so many levels deep."""


class Sign(NamedTuple):
    """Something that a detector found in a text: its kind (``injection.override``) and where."""

    kind: str
    start: int
    end: int


Detect = Callable[[str], Sequence[Sign]]
"""What detectors find in one text."""
Usable = Callable[[Mapping[str, Any]], None]
"""Raises a refusal for a JSON Schema that cannot be used."""

KNOWN: Final = words(
    "bash shell terminal computer python execute run_command read write edit multiedit glob grep ls task agent todowrite"
    " webfetch websearch web_search web_fetch read_file write_file edit_file create_file delete_file list_files list_directory"
    " search_files run_terminal_cmd codebase_search apply_patch str_replace_editor browser memory think"
)
"""Tools that common clients bring themselves, in lower case."""

_SIGNS: Final[dict[str, tuple[Severity, str, str]]] = {
    "injection": (
        "high", "speaks to the model, not to whoever reads about the tool",
        "read the whole text; do not let this server in before its author has explained it",
    ),
    "hidden": (
        "high", "has characters that a person does not see and a model reads",
        "do not let this server in: there is no honest reason for them in a description",
    ),
    "secret": ("high", "holds what looks like a secret", "tell its author; if it is yours, replace it and pass it with --env"),
    "pii": ("info", "holds what looks like personal data", "tell its author, unless it is an example"),
    "scan": ("medium", "is more than is searched", "have the server say less"),
}  # fmt: skip
_STEERS: Final = ("instead of", "before", "after", "first", "always", "never", "do not use", "don't use", "rather than")


def look_at_tools(tools: Sequence[dict[str, Any]], detect: Detect, usable: Usable) -> Iterator[Finding]:
    """Every rule for tools."""
    names = [str(tool.get("name", "")) for tool in tools]
    for name in sorted({name for name in names if names.count(name) > 1} if len(names) < 2_000 else ()):
        yield Finding(
            rule="names.twice", severity="high", where=tool_at(name), message="two tools have this name",
            ask="the server has to rename one: which of them is called is chance",
        )  # fmt: skip
    for name, other in twins(dict.fromkeys(names)).items():
        yield Finding(
            rule="names.look_alike", severity="high", where=tool_at(name),
            message=f"its name looks like {quoted(other)}", evidence=_spelt(name),
            ask="do not let this server in: one of the two is made to be taken for the other",
        )  # fmt: skip
    builtin = {skeleton(name): name for name in KNOWN}
    for tool, name in zip(tools, names, strict=True):
        where = tool_at(name)
        yield from _name(where, name)
        # A client's own tool is spelt otherwise in another client, so case and separators do not count here.
        known = builtin.get(skeleton(name)) or builtin.get(skeleton(name.replace("-", "_")))
        if known is not None:
            disguised = name.casefold().replace("-", "_") != known
            yield Finding(
                rule="names.shadows", severity="high" if disguised else "low", where=where,
                message=f"its name {'looks like' if disguised else 'is'} that of a tool that clients bring themselves",
                evidence=_spelt(name) if disguised else known,
                ask="see that your client tells the two apart; through Remit it is mcp/<server>/<tool>",
            )  # fmt: skip
        yield from texts(where, {key: value for key, value in tool.items() if key != "name"}, detect)
        yield from _steers(where, str(tool.get("description", "")), names, name)
        yield from _schemas(where, tool, usable)
        yield from wide(where, tool.get("inputSchema"))
        yield from abilities(where, tool)


def tool_at(name: str) -> str:
    """How a tool is shown in a report."""
    return f"tool {quoted(name)[:100]}"


def texts(where: str, value: Any, detect: Detect) -> Iterator[Finding]:
    """What is found in every text of ``value``: descriptions, titles, names of arguments, defaults, examples."""
    size = 0
    for pointer, text in _strings(value):
        size += len(text)
        for sign in detect(text):
            severity, what, ask = _SIGNS.get(sign.kind.partition(".")[0], _SIGNS["scan"])
            quotable = sign.kind.partition(".")[0] not in ("secret", "pii")
            yield Finding(
                rule=f"text.{sign.kind}", severity=severity, where=f"{where}{pointer}"[:300], message=what, ask=ask,
                evidence=quoted(text, (sign.start, sign.end)) if quotable else "not shown",
            )  # fmt: skip
    if size > LARGE:
        yield Finding(
            rule="text.large", severity="low", where=where, message=f"{size} characters for the model to read",
            ask="ask its author for less: it takes room from what else the model is to read",
        )  # fmt: skip


def _name(where: str, name: str) -> Iterator[Finding]:
    if odd := hidden(name):
        yield Finding(
            rule="names.hidden", severity="critical", where=where, message="its name has characters that are not shown",
            evidence=" ".join(odd[:12]), ask="do not let this server in",
        )  # fmt: skip
    elif not is_op(normalize(name)):
        yield Finding(
            rule="names.unusable", severity="medium", where=where, message="nothing can be called by this name",
            evidence=quoted(name), ask="use 1 to 256 characters, without / and *: the tool is left out otherwise",
        )  # fmt: skip
    elif len(name) > LONGEST:
        yield Finding(
            rule="names.long", severity="low", where=where, message=f"its name has {len(name)} characters",
            ask=f"clients take {LONGEST}: through /mcp it is called by a shortened name",
        )  # fmt: skip
    if name != normalize(name):
        yield Finding(
            rule="names.form", severity="medium", where=where, message="its name is not in NFKC form",
            evidence=_spelt(name), ask="have the server use plain letters",
        )  # fmt: skip


def _spelt(name: str) -> str:
    """A name with the code points of what is not ASCII in it."""
    odd = " ".join(f"U+{ord(char):04X}" for char in name[:64] if not char.isascii())
    return quoted(name)[:120] + (f" ({odd})" if odd else "")


def _steers(where: str, description: str, names: Sequence[str], own: str) -> Iterator[Finding]:
    """A description that says what to do with *other* tools: the way in which one server takes over another's."""
    if not any(word in description.lower() for word in _STEERS) or len(names) > 500:
        return
    others = sorted({name for name in names if len(name) > 4 and name != own and name in description})
    foreign = sorted({name for name in KNOWN - {*names} if ("_" in name) and name in description})
    if foreign:
        yield Finding(
            rule="text.steers", severity="medium", where=f"{where}/description",
            message=f"says how to use tools that are not this server's: {shown_names(foreign)}",
            evidence=quoted(description), ask="read it as if somebody else had written it",
        )  # fmt: skip
    elif others:
        yield Finding(
            rule="text.steers", severity="info", where=f"{where}/description",
            message=f"says how to use other tools of this server: {shown_names(others)}", ask="ordinary, but read it",
        )  # fmt: skip


def _schemas(where: str, tool: dict[str, Any], usable: Usable) -> Iterator[Finding]:
    for key in ("inputSchema", "outputSchema"):
        schema = tool.get(key)
        at = f"{where}/{key}"
        if schema is None and key == "outputSchema":
            continue
        if not isinstance(schema, dict) or schema.get("type") != "object":
            yield Finding(
                rule="protocol.schema", severity="medium", where=at, message="is not a JSON Schema of an object",
                evidence=quoted(schema), ask="the protocol asks for one; the tool is left out or refused otherwise",
            )  # fmt: skip
            if not isinstance(schema, dict):
                continue
        try:
            usable(schema)
        except Refusal as refused:
            bomb = refused.body.code == "TOO_LARGE" or "too much" in refused.body.message
            said, ask = quoted(refused.body.message), refused.body.ask
        else:
            bomb = explodes(schema)
            said, ask = (
                "makes more work with each level of a value than there is time for",
                "have its author simplify it",
            )
            if not bomb:
                continue
        yield Finding(
            rule="schema.bomb" if bomb else "schema.invalid",
            severity="high" if bomb else "medium",
            where=at,
            message=said,
            ask=ask,
        )


def explodes(schema: dict[str, Any]) -> bool:
    """Whether a validator without bounds of its own could be kept busy by a small value of a few levels."""
    table = looks(schema)
    return table[min(_LEVELS, len(table) - 1)] > _TOO_OFTEN


def _strings(value: Any) -> Iterator[tuple[str, str]]:
    """Every string and name of nested JSON with its pointer."""
    pending: list[tuple[str, Any]] = [("", value)]
    for _ in range(MAX_STRINGS):
        if not pending:
            return
        pointer, item = pending.pop()
        if isinstance(item, str):
            yield pointer, item
        elif isinstance(item, dict):
            for key, below in item.items():
                step = f"{pointer}/{quoted(key)[:60].replace('~', '~0').replace('/', '~1')}"[:400]
                if not str(key).isidentifier():
                    yield step, str(key)
                pending.append((step, below))
        elif isinstance(item, list):
            pending.extend((f"{pointer}/{index}"[:400], below) for index, below in enumerate(item))


def many(found: Iterable[Finding], most: int) -> Iterator[Finding]:
    """``found``, of each rule at most ``most``: a thousand tools with one gap are one gap."""
    seen: dict[str, int] = {}
    for one in found:
        seen[one.rule] = seen.get(one.rule, 0) + 1
        if seen[one.rule] <= most:
            yield one
