"""``hop.stream``: what a source says, piece by piece, as events of the hop."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Iterator
from typing import Any

from remit.errors import refused
from remit.usage import field
from remit_schemas.errors import Code


async def pieces_of(source: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AsyncIterator[Any]:
    """The pieces of an async (or plain) iterator, or of whatever calling ``astream``, ``run_stream`` or the source itself gives.

    What that gives may be an iterator or, as with ``run_stream`` of some libraries, an async context manager around an object
    that has one, ``stream_text`` or ``stream``. Raises :class:`~remit.errors.Refused` with MALFORMED for anything else.
    """
    begun: Any = source
    if not hasattr(source, "__aiter__") and not isinstance(source, Iterator):
        begin = next(
            (found for name in ("astream", "run_stream") if callable(found := getattr(source, name, None))), None
        )
        begun = (begin or source)(*args, **kwargs) if begin or callable(source) else None
        if inspect.isawaitable(begun):
            begun = await begun
    if hasattr(begun, "__aiter__"):
        async for piece in begun:
            yield piece
    elif isinstance(begun, Iterator):
        for piece in begun:
            yield piece
    elif hasattr(begun, "__aenter__"):
        async with begun as run:
            if callable(text := getattr(run, "stream_text", None)):
                async for piece in text(delta=True):
                    yield piece
            elif callable(pieces := getattr(run, "stream", None)):
                async for piece in pieces():
                    yield piece
            else:
                raise _no_source(run)
    else:
        raise _no_source(source)


def said(piece: Any) -> Any:
    """A piece as JSON data: text as it is, of a message its content, of a model its fields."""
    content = field(piece, "content")
    if isinstance(content, str):
        return content
    if isinstance(content, list) and not isinstance(piece, dict):
        texts = [part if isinstance(part, str) else field(part, "text") for part in content]
        return "".join(text for text in texts if isinstance(text, str))
    dump = getattr(piece, "model_dump", None)
    if callable(dump) and not isinstance(piece, dict):
        return dump(mode="json")
    return piece


def _no_source(thing: Any) -> Exception:
    return refused(
        Code.MALFORMED, f"a {type(thing).__name__} does not stream", rule="hop.stream",
        ask="give an async iterator, or an object with astream or run_stream",
    )  # fmt: skip
