"""``/api/openapi.json``: made of the very table that is served and of the very types that bodies and queries are read as.

What a table cannot say (what a route is for, what stands at the top of its answer) is told in ``told.py``, route by route; a test holds
that no route is missing there and none is of something that is not there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import msgspec

from remit_broker import __version__
from remit_schemas.errors import SURFACES, Code, ErrorBody

PATH: Final = "/api/openapi.json"
_TEMPLATE: Final = "#/components/schemas/{name}"
_PARAMETER: Final = re.compile(r"\{(\w+)\}")
_FORMS: Final = {
    "txn": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    "hop": {"type": "string", "pattern": "^[0-9a-f]{16}$"},
}
"""Parts of paths that have a form; others are any text."""


class Told(NamedTuple):
    """What a route does; the type of its body and of its query; what stands at the top of its answer."""

    does: str
    answer: tuple[str, ...] = ()
    body: type[Any] | None = None
    query: type[Any] | None = None


class Offered(NamedTuple):
    """A route as it is served: what it needs of its caller, None where it decides by itself."""

    verb: str
    path: str
    ability: str | None


def untold(offered: Iterable[Offered], told: dict[str, Told]) -> set[str]:
    """Routes that are served and not told of, or told of and not served."""
    return {f"{one.verb} {one.path}" for one in offered} ^ told.keys()


def document(offered: Iterable[Offered], told: dict[str, Told]) -> dict[str, Any]:
    """OpenAPI 3.1 of what is offered, and of nothing else. A route that nobody told of stands there with its path."""
    routes = list(offered)
    told = {name: told.get(name, Told(name)) for one in routes for name in [f"{one.verb} {one.path}"]}
    types = [one for about in told.values() for one in (about.body, about.query) if one is not None]
    _, schemas = msgspec.json.schema_components([*dict.fromkeys(types), ErrorBody], ref_template=_TEMPLATE)
    paths: dict[str, dict[str, Any]] = {}
    for one in routes:
        paths.setdefault(one.path, {})[one.verb.lower()] = _operation(one, told[f"{one.verb} {one.path}"], schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Remit", "version": __version__, "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": {**schemas, "Error": {"type": "object", "required": ["error"], "properties": {"error": _ref("ErrorBody")}}},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"bearer": []}],
    }  # fmt: skip


def _operation(one: Offered, about: Told, schemas: dict[str, Any]) -> dict[str, Any]:
    need = f"Needs the ability `{one.ability}`." if one.ability else "Decides by itself who may."
    answer: dict[str, Any] = {"type": "object", "required": list(about.answer)}
    operation: dict[str, Any] = {
        "operationId": f"{one.verb.lower()}_{re.sub(r'[^a-z]+', '_', one.path.removeprefix('/api/')).strip('_')}",
        "summary": about.does,
        "description": need,
        "parameters": [
            *(
                {"name": name, "in": "path", "required": True, "schema": _FORMS.get(name, {"type": "string", "minLength": 1})}
                for name in _PARAMETER.findall(one.path)
            ),
            *_query(about.query, schemas),
            {"name": "tenant", "in": "query", "required": False, "schema": {"type": "string"},
             "description": "The tenant it is about: the caller's own, else the default one."},
        ],
        "responses": {
            "200": {"description": "Done.", "content": {"application/json": {"schema": answer}}},
            **{
                str(status): {"description": ", ".join(codes), "content": {"application/json": {"schema": _ref("Error")}}}
                for status, codes in sorted(_refusals().items())
            },
        },
    }  # fmt: skip
    if about.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _ref(about.body.__name__)}},
        }
    return operation


def _query(kind: type[Any] | None, schemas: dict[str, Any]) -> list[dict[str, Any]]:
    if kind is None:
        return []
    properties = schemas[kind.__name__]["properties"]
    return [
        {"name": name, "in": "query", "required": False, "schema": _given(schema)}
        for name, schema in properties.items()
    ]


def _given(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a parameter that is given: leaving it out is how null is said in a query."""
    kinds = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    rest = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
    return {**rest, **(kinds[0] if kinds else {})}


def _refusals() -> dict[int, list[str]]:
    """Every status with which something may be refused, and by which codes."""
    found: dict[int, list[str]] = {}
    for code in Code:
        found.setdefault(SURFACES[code].http, []).append(code)
    return found


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": _TEMPLATE.format(name=name)}
