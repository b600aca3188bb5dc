"""Arguments as policy may see them: scalars and sets of scalars, each by its place (RFC 6901), in one bag for each type.

What becomes visible is decided by the tool's own schema, which is pinned, and never by what a caller sends: a value is in a bag
only where the schema declares that place with that type, under the name that the schema has for it. Values are data: Cedar's
JSON has escapes only for objects, and no object is ever handed to it. What cannot be projected is named by its place, so that a
policy can refuse it.
"""

from __future__ import annotations

import msgspec


class Arguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The projection. ``unprojected`` are the places of what is there and cannot be seen; ``""`` is the whole."""

    texts: dict[str, str] = {}
    numbers: dict[str, int] = {}
    flags: dict[str, bool] = {}
    text_sets: dict[str, tuple[str, ...]] = {}
    number_sets: dict[str, tuple[int, ...]] = {}
    flag_sets: dict[str, tuple[bool, ...]] = {}
    unprojected: tuple[str, ...] = ()


NOTHING = Arguments()
"""Of a question without arguments."""
