"""What a client may ask in a session of the generation 2025-11-25 (and the two before it), and what becomes of it."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any, Final

from remit_broker import __version__
from remit_broker.core.registry import OWN_TASKS, TASKS
from remit_broker.edges.mcp import finder
from remit_broker.edges.mcp.answers import fault_of, refused_tool, said_by_server
from remit_broker.edges.mcp.background_calls import EXTENSION, TaskCalls, tool_answer
from remit_broker.edges.mcp.catalogue import Catalogue, Pages, Shown, described
from remit_broker.edges.mcp.envelope import REVISION
from remit_broker.edges.mcp.hops import LEVELS, Ended, Hops
from remit_broker.edges.mcp.jsonrpc import INVALID_PARAMS, METHOD_NOT_FOUND, RESOURCE_NOT_FOUND, Call, Fault
from remit_broker.edges.mcp.session import SUBSCRIBED, Session, Tell
from remit_schemas.envelope import Error
from remit_schemas.errors import Code, Refusal
from remit_schemas.names import Resource, is_op, normalize

VERSIONS: Final = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
"""Revisions of the protocol that a session may have, the newest first. The oldest had another transport, and has clients that speak it
over this one."""

COLLISIONS: Final = "dev.remit/collisions"
"""The key in ``_meta`` of a listing under which the tools are that share a name."""

TASKS_OF: Final[dict[str, dict[str, Any]]] = {
    VERSIONS[0]: {"tasks": {"list": {}, "cancel": {}, "requests": {"tools": {"call": {}}}}},
    REVISION: {"extensions": {EXTENSION: {}}},
}
"""What is said of tasks where a server has them, by the revision of its client; the others have none."""

_LISTS: Final = {
    "resources/list": ("resources", "resources"),
    "resources/templates/list": ("templates", "resourceTemplates"),
    "prompts/list": ("prompts", "prompts"),
}


def agreed(wanted: Any) -> str:
    """The revision of a session: the client's, where it is one of ours."""
    return wanted if wanted in VERSIONS else VERSIONS[0]


class Methods:
    """The requests of one session."""

    def __init__(
        self, session: Session, catalogue: Catalogue, hops: Hops, pages: Pages, tasks: TaskCalls | None = None
    ) -> None:
        """``tasks`` are there for clients that know of calls that go on after they were answered."""
        self._session, self._catalogue, self._hops, self._pages = session, catalogue, hops, pages
        self._tasks = tasks

    async def answer(self, call: Call, tell: Tell) -> dict[str, Any]:
        """The result of a request. Raises :class:`Fault` or a refusal."""
        match call.method:
            case "ping":
                return {}
            case "tools/list":
                return await self._tools(call)
            case "tools/call":
                return await self._call_tool(call, tell)
            case "resources/list" | "resources/templates/list" | "prompts/list":
                offered, shown = _LISTS[call.method]
                return self._page(offered, shown, self._catalogue.offered(offered), call)
            case "resources/read":
                return await self._read(call, tell)
            case "prompts/get":
                return await self._prompt(call, tell)
            case "completion/complete":
                return await self._complete(call, tell)
            case "resources/subscribe":
                return await self._subscribe(call, tell)
            case "resources/unsubscribe":
                self._session.subscribed.pop(str(call.params.get("uri")), None)
                return {}
            case "logging/setLevel":
                return self._set_level(call.params.get("level"))
            case "tasks/list" if self._tasks is not None:
                return self._page("tasks", "tasks", [one.plain() for one in self._tasks.mine()], call)
        if self._tasks is not None and call.method.startswith("tasks/"):
            return await self._tasks.answer(call, tell)
        raise Fault(METHOD_NOT_FOUND, f"there is no method {call.method[:64]!r} here")

    def _page(self, what: str, shown: str, entries: list[Any], call: Call) -> dict[str, Any]:
        whose = (*self._session.key, self._session.view or "")
        some, after = self._pages.page(what, whose, entries, call.params.get("cursor"))
        return {shown: some} if after is None else {shown: some, "nextCursor": after}

    async def _tools(self, call: Call) -> dict[str, Any]:
        if self._catalogue.searches:
            return {"tools": finder.TOOLS}
        told = self._page("tools", "tools", [self._described(one) for one in await self._catalogue.tools()], call)
        if call.params.get("cursor") is None and (shared := self._catalogue.collisions()):
            # Not hidden: whoever misses a tool finds out why.
            told["_meta"] = {COLLISIONS: shared}
        return told

    def _described(self, shown: Shown) -> dict[str, Any]:
        told = described(shown)
        if self._session.version == VERSIONS[0] and (support := self._catalogue.task_support(shown.resource)):
            told["execution"] = {"taskSupport": support}
        return told

    async def _call_tool(self, call: Call, tell: Tell) -> dict[str, Any]:
        name, args = call.params.get("name"), call.params.get("arguments")
        args = {} if args is None else args
        if not isinstance(name, str) or not isinstance(args, dict):
            raise Fault(INVALID_PARAMS, "tools/call needs the name of a tool, and an object as its arguments")
        if self._catalogue.searches:
            said = await finder.answer(name, args, self._catalogue)
            if not isinstance(said, finder.Meant):
                return said
            name, args = said
        resource = self._tool(name)
        try:
            if self._tasks is not None and self._tasks.wanted(call, self._catalogue.task_support(resource)):
                return await self._tasks.begin(call, resource, args, tell)
            return tool_answer(await self._hops.run(call, resource, args, tell), self._session.can)
        except Refusal as no:
            # Before there was a hop: no room, no task.
            return refused_tool(no.body)

    def _tool(self, name: str) -> Resource:
        op = normalize(name)
        # INVARIANT: what is no name of a tool is none of a resource either, and reaches nothing
        # (test_a_hostile_name_of_a_tool_is_an_unknown_tool).
        resource = self._catalogue.resolve(op) if is_op(op) and not op.startswith("$") else None
        if resource is None and (same := self._catalogue.sharing(op)):
            raise Fault(
                INVALID_PARAMS, f"{op} is the name of several tools, so none is called: {', '.join(same)}. "
                "Use /mcp/<server>, or ask an operator to rename a server", {COLLISIONS: {op: same}},
            )  # fmt: skip
        if resource is None:
            raise Fault(INVALID_PARAMS, f"Unknown tool: {name[:64]}")
        return resource

    async def _read(self, call: Call, tell: Tell) -> dict[str, Any]:
        uri = call.params.get("uri")
        if not isinstance(uri, str):
            raise Fault(INVALID_PARAMS, "resources/read needs a uri")
        server = self._catalogue.server_of_uri(uri)
        if server is None:
            raise Fault(RESOURCE_NOT_FOUND, "Resource not found", {"uri": uri[:512]})
        try:
            return _answered(await self._hops.run(call, Resource("mcp", server, "$resource"), {"uri": uri}, tell))
        except Fault as fault:
            raise Fault(fault.code, fault.message, {"uri": uri[:512], **(fault.data or {})}) from None

    async def _subscribe(self, call: Call, tell: Tell) -> dict[str, Any]:
        uri = call.params.get("uri")
        server = self._catalogue.server_of_uri(uri) if isinstance(uri, str) else None
        if server is None or not isinstance(uri, str):
            raise Fault(RESOURCE_NOT_FOUND, "Resource not found", {"uri": str(uri)[:512]})
        if len(self._session.subscribed) >= SUBSCRIBED:
            raise Fault(INVALID_PARAMS, f"at most {SUBSCRIBED} resources can be subscribed to in one session")
        said = _answered(await self._hops.run(call, Resource("mcp", server, "$subscribe"), {"uri": uri}, tell))
        self._session.subscribed[uri] = server
        return said

    async def _prompt(self, call: Call, tell: Tell) -> dict[str, Any]:
        name, arguments = call.params.get("name"), call.params.get("arguments") or {}
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise Fault(INVALID_PARAMS, "prompts/get needs the name of a prompt, and texts as its arguments")
        known = self._catalogue.prompt(name)
        if known is None:
            raise Fault(INVALID_PARAMS, f"Unknown prompt: {name[:64]}")
        server, own = known
        args = {"name": own, **({"arguments": arguments} if arguments else {})}
        return _answered(await self._hops.run(call, Resource("mcp", server, "$prompt"), args, tell), self._session.can)

    async def _complete(self, call: Call, tell: Tell) -> dict[str, Any]:
        ref, argument = call.params.get("ref"), call.params.get("argument")
        if not isinstance(ref, dict) or not isinstance(argument, dict):
            raise Fault(INVALID_PARAMS, "completion/complete needs a ref and an argument")
        server: str | None
        if ref.get("type") == "ref/prompt":
            known = self._catalogue.prompt(str(ref.get("name")))
            server, ref = (known[0], {**ref, "name": known[1]}) if known is not None else (None, ref)
        else:
            server = self._catalogue.server_of_uri(str(ref.get("uri")))
        if server is None:
            raise Fault(INVALID_PARAMS, "there is nothing of that name to complete")
        args = {"ref": ref, "argument": argument}
        if isinstance(context := call.params.get("context"), dict):
            args["context"] = context
        return _answered(await self._hops.run(call, Resource("mcp", server, "$complete"), args, tell))

    def _set_level(self, level: Any) -> dict[str, Any]:
        if level not in LEVELS:
            raise Fault(INVALID_PARAMS, f"a level is one of {', '.join(LEVELS)}")
        # Of this session alone: the server's own is the same for everybody.
        self._session.level = level
        return {}


def welcome(
    version: str, server: str | None, known: dict[str, Any], offers: Iterable[dict[str, Any]]
) -> dict[str, Any]:
    """The result of ``initialize``. One server is shown as itself; all of them together are Remit."""
    shown = list(offers)
    can = {name for one in shown for name in one.get("capabilities", [])}
    told: dict[str, Any] = {"protocolVersion": version, "capabilities": {"tools": {"listChanged": True}}}
    if "resources" in can:
        told["capabilities"]["resources"] = {"subscribe": "subscriptions" in can, "listChanged": True}
    if "prompts" in can:
        told["capabilities"]["prompts"] = {"listChanged": True}
    if "completions" in can:
        told["capabilities"]["completions"] = {}
    if "logging" in can or not shown:
        told["capabilities"]["logging"] = {}
    if can & {TASKS, OWN_TASKS}:
        told["capabilities"] |= TASKS_OF.get(version, {})
    if server is not None and known.get("name"):
        told["serverInfo"] = {"name": str(known["name"]), "version": str(known.get("version", ""))}
        if shown and (said := shown[0].get("instructions")):
            told["instructions"] = said
    else:
        told["serverInfo"] = {"name": "remit", "version": __version__}
    return told


def refused(no: Refusal) -> Fault:
    """A refusal of anything but a tool."""
    return fault_of(no.body)


def _answered(ended: Ended, can: Container[str] = ()) -> dict[str, Any]:
    frame = ended.frame
    if isinstance(frame, Error):
        body = frame.error
        if (said := said_by_server(body, can)) is not None:
            raise said
        raise fault_of(body, INVALID_PARAMS if body.code in (Code.UNKNOWN_TARGET, Code.ARGUMENTS_INVALID) else None)
    return frame.value if isinstance(frame.value, dict) else {}
