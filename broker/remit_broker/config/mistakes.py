"""A mistake in the file, told with its key, what is wrong there, and what is allowed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import msgspec
import msgspec.inspect

from remit_broker.adapters.errors import ConfigError
from remit_broker.config.keys import Config


def mistake(file: Path, message: str) -> ConfigError:
    """msgspec's ``… - at `$.bus.port``` turned round: the key first, then what is wrong, then what is allowed there."""
    what, _, where = message.partition(" - at `$")
    key = _INDEX.sub(".*", where.rstrip("`").lstrip("."))
    found = _type_at(key)
    ask = ""
    if unknown := _UNKNOWN.search(what):
        key, what = f"{key}.{unknown[1]}".lstrip("."), "there is no such key"
        if isinstance(found, msgspec.inspect.StructType):
            ask = "keys there are: " + ", ".join(field.encode_name for field in found.fields)
    elif isinstance(found, msgspec.inspect.LiteralType):
        ask = "allowed are: " + ", ".join(map(repr, found.values))
    what = what.replace("`", "").replace("object", "table")
    return ConfigError(
        f"{file}: {key}: {what}", ask or "remit init writes a file that shows every key with its default"
    )


_INDEX: Final = re.compile(r"\[(?:\.\.\.|\d+)\]")
_UNKNOWN: Final = re.compile("unknown field `(.*)`", re.DOTALL)


def _type_at(key: str) -> msgspec.inspect.Type | None:
    found: msgspec.inspect.Type = msgspec.inspect.type_info(Config)
    for name in filter(None, key.split(".")):
        if not isinstance(found, msgspec.inspect.StructType):
            return None
        # Inside a list or a table of names the way is not the types' own any more.
        fields = {field.encode_name: field.type for field in found.fields}
        if name not in fields:
            return None
        found = fields[name]
    return found
