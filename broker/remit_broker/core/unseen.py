"""What a policy means by an argument that it cannot see: for a forbid that it may be what is forbidden, for a permit that it may not
be what is permitted.

A policy about ``/sql`` that found nothing at ``/sql`` would let pass a text that is too long to be shown, or one that the schema
does not declare. So every policy that looks at arguments is completed here, in Cedar's JSON form: a permit by the condition that
none of the places it names is unprojected, a forbid by a second one with the same scope that holds where one of them is. A policy
that speaks of ``context.args_unprojected`` itself has thought of it, and is left as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from remit_broker.core.question import facts_read

UNPROJECTED: Final = {".": {"left": {"Var": "context"}, "attr": "args_unprojected"}}


def guarded(body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """A policy as it is to be asked, and what is to be asked beside it. Pure: ``body`` is not changed.

    INVARIANT: what cannot be seen is never taken for what is not there
    (test_what_a_policy_cannot_see_is_taken_for_the_worse).
    """
    nodes = list(_nodes(body["conditions"]))
    read = {node["."].get("attr") for node in nodes if _is(node, ".")}
    if "args" not in read or "args_unprojected" in read:
        return body, None
    hidden = _hidden(nodes)
    if body["effect"] == "permit":
        return {**body, "conditions": [*body["conditions"], {"kind": "unless", "body": hidden}]}, None
    return body, {**body, "conditions": [{"kind": "when", "body": hidden}]}


def _hidden(nodes: list[Any]) -> dict[str, Any]:
    """The condition that something the policy looks at cannot be seen: where the places are not written out, anything at all."""
    asked = [node[word]["right"] for node in nodes for word in ("hasTag", "getTag") if _is(node, word)]
    places = [place.get("Value") for place in asked if isinstance(place, dict)]
    if not asked or len(places) != len(asked) or not all(isinstance(place, str) for place in places):
        return {"!": {"arg": {"isEmpty": {"arg": UNPROJECTED}}}}
    around = sorted({one for place in places for one in _around(str(place))})
    return {"containsAny": {"left": UNPROJECTED, "right": {"Set": [{"Value": one} for one in around]}}}


def _is(node: Any, word: str) -> bool:
    return isinstance(node, dict) and isinstance(node.get(word), dict)


def _around(place: str) -> Iterable[str]:
    """A place and what it is in: ``/a/b``, ``/a``, and the whole."""
    tokens = place.split("/")
    return ["/".join(tokens[:count]) for count in range(1, len(tokens) + 1)]


def _nodes(value: Any) -> Iterator[Any]:
    pending = [value]
    while pending:
        node = pending.pop()
        yield node
        pending.extend(node.values() if isinstance(node, dict) else node if isinstance(node, list) else ())


def widened(body: dict[str, Any]) -> dict[str, Any]:
    """A policy without all that its conditions ask of arguments: it holds wherever ``body`` could hold with some of them."""
    kept = []
    for condition in body["conditions"]:
        if condition["kind"] == "unless":
            kept += [condition] if not _reads(condition["body"]) else []
        else:
            kept += [{"kind": "when", "body": part} for part in conjuncts(condition["body"]) if not _reads(part)]
    return {**body, "conditions": kept}


def _reads(node: Any) -> bool:
    """Whether arguments are looked at, or could be: where the context is handed on as a whole it is not known what of it is used."""
    read = facts_read([{"conditions": node}])
    return bool(read & {"args", "args_unprojected"})


def conjuncts(body: Any) -> Iterator[Any]:
    """What all has to hold: the parts of ``a && b && c``, in order."""
    if isinstance(body, dict) and isinstance(both := body.get("&&"), dict):
        yield from conjuncts(both["left"])
        yield from conjuncts(both["right"])
    else:
        yield body
