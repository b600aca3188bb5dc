"""What a skill takes and gives, as JSON Schema, read from its type annotations; and arguments checked by the same types."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from remit.errors import as_refused, refused
from remit_schemas.errors import Code, Effect
from remit_schemas.names import is_op
from remit_schemas.scope import parse_scope

Function = Callable[..., Awaitable[Any]]

_REFERENCE: Final = "#/$defs/{name}"
_POSITIONAL: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_NAMED: Final = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True)
class Skill:
    """A function that serves calls. ``needs`` is the most it may ever be given (None: no limit of its own).

    ``effect`` is what may have happened when it fails by an exception: ``none`` for one that changes nothing itself. ``models`` of
    False says that it calls no model, so that what it costs by itself is known to be nothing unless it reports a cost.
    """

    name: str
    function: Function
    arguments: type[msgspec.Struct]
    title: str = ""
    description: str = ""
    input_schema: Mapping[str, Any] = typing.cast("Mapping[str, Any]", None)
    output_schema: Mapping[str, Any] | None = None
    needs: tuple[str, ...] | None = None
    effect: Effect = "unknown"
    models: bool = True

    def definition(self) -> dict[str, Any]:
        """As it is registered with the broker."""
        raw: dict[str, Any] = {
            "name": self.name,
            "title": self.title,
            "description": self.description,
            "input_schema": self.input_schema,
            "output_schema": self.output_schema,
            "effect": self.effect,
        }
        return raw if self.needs is None else {**raw, "needs": list(self.needs)}

    def bind(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments of the function. Raises :class:`~remit.errors.Refused` with ARGUMENTS_INVALID."""
        try:
            typed = msgspec.convert(args, self.arguments, strict=True)
        except msgspec.ValidationError as error:
            raise refused(
                Code.ARGUMENTS_INVALID, f"the arguments of {self.name} do not fit: {error}", rule="skill.arguments",
                ask="see its input schema",
            ) from None  # fmt: skip
        # What was left out is left to the function's own defaults.
        return {name: value for name in typed.__struct_fields__ if (value := getattr(typed, name)) is not UNSET}


def skill_of(function: Function, *, locals_: Mapping[str, Any] | None = None, **fields: Any) -> Skill:
    """The skill that ``function`` is; ``fields`` are ``name``, ``title``, ``description``, ``needs``, ``effect`` where they are given.

    Raises ``TypeError`` that says what to change: it is the developer's mistake, found when the module is imported.
    """
    if not inspect.iscoroutinefunction(function):
        raise TypeError(f"{function!r} cannot be a skill: write it as an async function")
    name = fields.get("name") or function.__name__
    if not is_op(name):
        raise TypeError(f"{name!r} cannot name a skill: use 1 to 256 printable characters without / or *")
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters or parameters[0].kind not in _POSITIONAL:
        raise TypeError(f"the skill {name} must take the hop first: async def {function.__name__}(hop: Hop, …)")
    types = _types(function, parameters[0].name, name, locals_)
    arguments = _struct(name, parameters[1:], types)
    needs = fields.get("needs")
    for need in needs or ():
        with as_refused():
            parse_scope(need)
    description = fields.get("description")
    return Skill(
        name=name,
        function=function,
        arguments=arguments,
        title=fields.get("title") or "",
        description=inspect.getdoc(function) or "" if description is None else description,
        input_schema=_input_schema(name, arguments, parameters[1:]),
        output_schema=_output_schema(name, types.get("return", Any)),
        needs=None if needs is None else tuple(needs),
        effect=fields.get("effect") or "unknown",
        models=fields.get("models", True),
    )


def _types(function: Function, hop: str, name: str, locals_: Mapping[str, Any] | None) -> dict[str, Any]:
    raw = {key: value for key, value in inspect.get_annotations(function).items() if key != hop}
    try:
        return typing.get_type_hints(
            SimpleNamespace(__annotations__=raw),
            globalns=getattr(function, "__globals__", {}),
            localns=dict(locals_ or {}),
            include_extras=True,
        )
    except Exception as error:
        raise TypeError(f"the annotations of the skill {name} cannot be read: {error}") from None


def _struct(name: str, parameters: list[inspect.Parameter], types: Mapping[str, Any]) -> type[msgspec.Struct]:
    fields: list[Any] = []
    for parameter in parameters:
        if parameter.kind not in _NAMED:
            raise TypeError(f"the skill {name} cannot take {parameter}: name each argument")
        kind = types.get(parameter.name, Any)
        if parameter.default is inspect.Parameter.empty:
            fields.append((parameter.name, kind))
        else:
            fields.append((parameter.name, kind | UnsetType if kind is not Any else kind, UNSET))
    try:
        return msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=True)
    except TypeError as error:
        raise TypeError(f"the arguments of the skill {name} cannot be JSON: {error}") from None


def _input_schema(name: str, arguments: type[msgspec.Struct], parameters: list[inspect.Parameter]) -> dict[str, Any]:
    try:
        (_,), components = msgspec.json.schema_components([arguments], ref_template=_REFERENCE)
    except TypeError as error:
        raise TypeError(f"the arguments of the skill {name} have no JSON Schema: {error}") from None
    found = dict(components)
    schema: dict[str, Any] = {key: value for key, value in found.pop("Arguments").items() if key != "title"}
    schema.setdefault("required", [])
    for parameter in parameters:
        if parameter.default is not inspect.Parameter.empty:
            try:
                schema["properties"][parameter.name]["default"] = msgspec.to_builtins(parameter.default, str_keys=True)
            except TypeError:
                schema["properties"][parameter.name].pop("default", None)
    return {**schema, "$defs": found} if found else schema


def _output_schema(name: str, kind: Any) -> dict[str, Any] | None:
    if kind is Any:
        return None
    try:
        (schema,), components = msgspec.json.schema_components([kind], ref_template=_REFERENCE)
    except TypeError as error:
        raise TypeError(f"the result of the skill {name} has no JSON Schema: {error}") from None
    return {**schema, "$defs": components} if components else schema
