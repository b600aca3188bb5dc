"""``subscriptions/listen``: a stream on which a client without a session is told what it asked to be told of, and nothing else."""

from __future__ import annotations

from typing import Any, Final

from remit_broker.edges.mcp.envelope import PROTOCOL, REVISION
from remit_broker.edges.mcp.jsonrpc import INVALID_PARAMS, Call, Fault, Id, notification
from remit_broker.edges.mcp.methods import Methods
from remit_broker.edges.mcp.session import SUBSCRIBED, Session
from remit_broker.edges.mcp.tasks import Task
from remit_schemas.errors import Refusal

_ABOUT: Final = {"toolsListChanged": "tools", "promptsListChanged": "prompts", "resourcesListChanged": "resources"}
_URIS: Final = "resourceSubscriptions"


class Listening(Session):
    """One stream. It is known by the id of the request that opened it, and every message on it says so."""

    def __init__(
        self, request: Id, key: tuple[str, ...], view: str | None, task: Task, *, client: dict[str, Any]
    ) -> None:
        super().__init__(key, view, task, version=REVISION, client=client)
        self._meta = {PROTOCOL + "subscriptionId": request}
        self._wanted: frozenset[str] = frozenset()

    def wants(self, kinds: frozenset[str]) -> None:
        """It is told of changes in these lists, and of the resources that are :attr:`subscribed`."""
        self._wanted = frozenset(f"notifications/{kind}/list_changed" for kind in kinds) | {
            "notifications/resources/updated"
        }

    def tell(self, message: dict[str, Any]) -> None:
        """What was not asked for is not said."""
        if message["method"] in self._wanted:
            super().tell(notification(message["method"], {**message.get("params", {}), "_meta": self._meta}))

    def acknowledged(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """The first message: what of the wish is kept."""
        return notification("notifications/subscriptions/acknowledged", {"notifications": wanted, "_meta": self._meta})

    def over_result(self) -> dict[str, Any]:
        """The last one, where the broker ends the stream."""
        return {"_meta": self._meta}


async def honoured(call: Call, listening: Listening, methods: Methods, can: dict[str, Any]) -> dict[str, Any]:
    """What of the client's wish is granted: each resource by a hop of its own. Raises :class:`Fault` for what is no wish."""
    wish = call.params.get("notifications")
    uris = wish.get(_URIS) if isinstance(wish, dict) else None
    if not isinstance(wish, dict) or not (uris is None or isinstance(uris, list)):
        raise Fault(INVALID_PARAMS, "notifications says what is to be told: a filter")
    if uris and len(uris) > SUBSCRIBED:
        raise Fault(INVALID_PARAMS, f"at most {SUBSCRIBED} resources can be subscribed to on one stream")
    kept: dict[str, Any] = {name: True for name, kind in _ABOUT.items() if wish.get(name) is True and kind in can}
    listening.wants(frozenset(_ABOUT[name] for name in kept))
    for uri in uris or ():
        try:
            await methods.answer(Call(call.id, "resources/subscribe", {"uri": uri}), _to_nobody)
        except (Fault, Refusal):
            continue
    if listening.subscribed:
        kept[_URIS] = list(listening.subscribed)
    return kept


async def _to_nobody(_: dict[str, Any]) -> None:
    return None
