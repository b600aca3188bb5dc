"""Writes the JSON Schemas (draft 2020-12) of what crosses a boundary to ``json/``, from the types that parse it.

They say what is well-formed. What must hold among values (a depth that is the number of actors, a hash that seals its
record) is in the documents and in the vectors. Use: ``python schemas/generate_schemas.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import msgspec

from remit_schemas import envelope, records
from remit_schemas.budget import UNITS
from remit_schemas.canonical import MAX_INTEGER
from remit_schemas.claims import Claims
from remit_schemas.errors import ErrorBody
from remit_schemas.jws import Header

FOLDER: Final = Path(__file__).parent / "json"
DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"

TYPES: Final[dict[str, tuple[str, Any]]] = {
    "request": ("A call, from a caller to the broker", envelope.Request),
    "dispatch": ("A governed call, from the broker to a callee", envelope.Dispatch),
    "frame": ("One frame of a reply", envelope.Frame),
    "error": ("The body of every error", ErrorBody),
    "record": ("A record of a txn", records.Record),
    "refused": ("A call that never became a hop", records.HopRefused),
    "entry": ("A message of the ledger's stream", records.Entry),
    "grant-header": ("The protected header of a grant", Header),
    "grant-claims": ("The claims of a grant", Claims),
}


def without_null(schema: Any) -> Any:
    """The schema of claims: what may be absent may not be null."""
    if isinstance(schema, list):
        return [without_null(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {name: without_null(value) for name, value in schema.items() if (name, value) != ("default", None)}
    match schema.get("anyOf"):
        case [*options] if {"type": "null"} in options:
            rest = [option for option in options if option != {"type": "null"}]
            others = {name: value for name, value in schema.items() if name != "anyOf"}
            return {**others, **rest[0]} if len(rest) == 1 else {**others, "anyOf": rest}
    return schema


def bounded(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with the bounds of amounts, which the type checks itself."""
    budget = schema.get("$defs", {}).get("Budget", {"properties": {}})
    for unit in UNITS:
        budget["properties"].get(unit, {}).update(minimum=0, maximum=MAX_INTEGER)
    return schema


def generate() -> dict[str, str]:
    """The text of every file, by name."""
    made = {}
    for name, (title, kind) in TYPES.items():
        schema = bounded(msgspec.json.schema(kind))
        if kind is Claims:
            schema = without_null(schema)
        document = {"$schema": DRAFT, **schema, "title": title}
        made[f"{name}.json"] = json.dumps(document, indent=1, ensure_ascii=True) + "\n"
    return made


def main() -> None:
    """Write them."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in generate().items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
