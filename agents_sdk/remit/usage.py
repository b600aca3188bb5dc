"""How much a model's answer says that it used, whoever's library it comes from: no library is imported, names are looked for."""

from __future__ import annotations

from typing import Any, Final

Usage = tuple[int, int]
"""Tokens read and tokens written."""

MOST: Final = 10**9
"""More tokens than one call can have used: such a report is no report."""

_READ: Final = ("input_tokens", "prompt_tokens")
_ALSO_READ: Final = ("cache_creation_input_tokens", "cache_read_input_tokens")
_WRITTEN: Final = ("output_tokens", "completion_tokens")


def field(thing: Any, name: str) -> Any:
    """A member of a dict, or an attribute; None where there is none."""
    if isinstance(thing, dict):
        return thing.get(name)
    try:
        return getattr(thing, name, None)
    except Exception:  # somebody else's property
        return None


def usage_of(answer: Any) -> Usage | None:
    """What an answer (or a piece of a stream) says that it used; None where it does not say so in plain numbers.

    LangChain says ``usage_metadata``, OpenAI and Anthropic say ``usage``, the latter's first event says it in its ``message``.
    """
    found = field(answer, "usage_metadata") or field(answer, "usage")
    if found is None:
        metadata = field(answer, "response_metadata")
        found = field(metadata, "token_usage") or field(metadata, "usage") or field(field(answer, "message"), "usage")
    return None if found is None else _counted(found)


def additive(piece: Any) -> bool:
    """Whether the pieces of this stream say what each of them used, instead of the sum so far."""
    return field(piece, "usage_metadata") is not None


def model_of(answer: Any) -> str:
    """The name of the model, as the answer says it; empty where it does not."""
    metadata = field(answer, "response_metadata")
    for name in (field(answer, "model"), field(metadata, "model_name"), field(metadata, "model")):
        if isinstance(name, str) and name:
            return name
    return ""


def _counted(found: Any) -> Usage | None:
    read, written = _number(found, _READ), _number(found, _WRITTEN)
    if read is None and written is None:
        return None
    more = [field(found, name) for name in _ALSO_READ]
    return (read or 0) + sum(count for count in more if _is_count(count)), written or 0


def _number(found: Any, names: tuple[str, ...]) -> int | None:
    for name in names:
        if _is_count(count := field(found, name)):
            return int(count)
    return None


def _is_count(count: Any) -> bool:
    return isinstance(count, int) and not isinstance(count, bool) and 0 <= count <= MOST
