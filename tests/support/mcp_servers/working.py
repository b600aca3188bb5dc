"""A raw stdio server whose tools are worked on in the background, in the generation named by its first argument: sessions or requests.

A task ends when the tool ``finish`` says so, and not by a clock. JSON lines by hand: what some of its tools do no library would.
"""

from __future__ import annotations

import itertools
import json
import sys
from typing import Any

SESSIONS = "sessions" in sys.argv[1:]
EXTENSION = "io.modelcontextprotocol/tasks"
AT = "2026-11-25T10:30:00Z"
TEXT = {"type": "object", "properties": {"text": {"type": "string"}}}
FORM = {"message": "your name?", "requestedSchema": {"type": "object", "properties": {"name": {"type": "string"}}}}
TOOLS = {"work": "optional", "must": "required", "ask": "optional", "twin": "optional", "other": "optional"}
ALSO = ("finish", "seen", "fail")
SECRET = "ghp_" + "a1B2c3D4e5F6g7H8i9J0" + "k1L2m3N4o5P6q7R8"

tasks: dict[str, dict[str, Any]] = {}
cancelled: list[str] = []
seen: list[str] = []
waits: list[Any] = []
names = (f"server-{n}" for n in itertools.count(1))


def say(message: dict[str, Any]) -> None:
    """One line."""
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def answer(ident: Any, result: dict[str, Any]) -> None:
    """A result, as the generation has it."""
    more = {} if SESSIONS else {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"}
    say({"id": ident, "result": {**more, **result}})


def refuse(ident: Any, code: int, message: str) -> None:
    """An error of the protocol."""
    say({"id": ident, "error": {"code": code, "message": message}})


def text(value: str, **more: Any) -> dict[str, Any]:
    """The result of a tool."""
    return {"content": [{"type": "text", "text": value}], **more}


def shown(name: str, detailed: bool = False) -> dict[str, Any]:
    """A task as the generation has it."""
    task = tasks[name]
    told = {
        "taskId": name,
        "status": task["status"],
        "createdAt": AT,
        "lastUpdatedAt": AT,
        "statusMessage": task["message"],
    }
    told |= {"ttl": task["ttl"], "pollInterval": 20} if SESSIONS else {"ttlMs": 60_000, "pollIntervalMs": 20}
    if detailed and not SESSIONS:
        told |= {key: task[key] for key in ("result", "error") if key in task}
        if task["status"] == "input_required":
            told["inputRequests"] = {"name": {"method": "elicitation/create", "params": {"mode": "form", **FORM}}}
    return told


def begin(ident: Any, tool: str, params: dict[str, Any]) -> None:
    """A call becomes a task."""
    name = "server-twin" if tool == "twin" else next(names)
    wish = params.get("task") or {}
    said = str((params.get("arguments") or {}).get("text", ""))
    tasks[name] = {"status": "working", "message": f"{tool} is being worked on", "ttl": wish.get("ttl"), "text": said}
    if tool == "ask":
        tasks[name]["status"] = "input_required"
    if tool == "other":
        tasks["server-other"] = {
            "status": "completed", "message": "", "ttl": None, "text": "", "result": text("of another"),
        }  # fmt: skip
    created = shown(name)
    say({"id": ident, "result": {"task": created} if SESSIONS else {"resultType": "task", **created}})


def finish(name: str, result: dict[str, Any] | None = None) -> None:
    """The work is done."""
    task = tasks[name]
    if task["status"] in ("working", "input_required"):
        task["status"], task["message"] = "completed", "done"
        task["result"] = text(f"result of {task['text']}") if result is None else result
    for ident, waiting in [one for one in waits if one[1] == name]:
        waits.remove((ident, waiting))
        answer(ident, task["result"])


def call(ident: Any, params: dict[str, Any]) -> None:
    """``tools/call``."""
    tool, said = params["name"], str((params.get("arguments") or {}).get("text", ""))
    meta = params.get("_meta") or {}
    can = (meta.get("io.modelcontextprotocol/clientCapabilities") or {}).get("extensions") or {}
    as_task = "task" in params if SESSIONS else EXTENSION in can
    seen.append(f"{tool}{' as a task' if as_task else ''}")
    if tool == "finish":
        for name in [one for one in tasks if tasks[one]["text"] == said]:
            finish(name, text(f"the token is {SECRET}") if said == "secret" else None)
        return answer(ident, text("finished"))
    if tool == "seen":
        return answer(ident, text(json.dumps({"calls": seen, "cancelled": cancelled, "tasks": list(tasks)})))
    if tool == "fail" or not as_task:
        return answer(ident, text(f"{tool} at once", isError=tool == "fail"))
    begin(ident, tool, params)


def of_task(method: str, ident: Any, params: dict[str, Any]) -> None:
    """What is asked of a task."""
    name = params.get("taskId")
    if name not in tasks:
        return refuse(ident, -32602, "Task not found")
    if method == "tasks/get":
        other = tasks[name]["text"] == "lie"
        return answer(ident, shown("server-other" if other else name, detailed=True))
    if method == "tasks/cancel":
        cancelled.append(tasks[name]["text"])
        tasks[name]["status"] = "cancelled"
        return answer(ident, shown(name) if SESSIONS else {})
    if method == "tasks/update":
        finish(name, text(f"hello {params['inputResponses']['name']['content']['name']}"))
        return answer(ident, {})
    if "result" in tasks[name]:
        return answer(ident, tasks[name]["result"])
    waits.append((ident, name))
    meta = {"io.modelcontextprotocol/related-task": {"taskId": name}}
    say({"id": f"ask-{name}", "method": "elicitation/create", "params": {**FORM, "_meta": meta}})
    return None


def listed() -> list[dict[str, Any]]:
    """The definitions."""
    found: list[dict[str, Any]] = []
    for name in (*TOOLS, *ALSO):
        tool = {"name": name, "inputSchema": TEXT, "annotations": {"readOnlyHint": True}}
        found.append(tool | ({"execution": {"taskSupport": TOOLS[name]}} if SESSIONS and name in TOOLS else {}))
    return found


def handle(message: dict[str, Any]) -> None:
    """One message of the client."""
    method, ident, params = message.get("method"), message.get("id"), message.get("params") or {}
    about = {"name": "working", "version": "1"}
    if method is None and str(ident).startswith("ask-"):
        said = message.get("result") or {}
        name = (said.get("content") or {}).get("name", said.get("action", "refused"))
        finish(str(ident)[4:], text(f"hello {name}"))
    elif method == "initialize" and SESSIONS:
        can: dict[str, Any] = {"tools": {}, "tasks": {"list": {}, "cancel": {}, "requests": {"tools": {"call": {}}}}}
        answer(ident, {"protocolVersion": "2025-11-25", "capabilities": can, "serverInfo": about})
    elif method == "server/discover" and not SESSIONS:
        can = {"tools": {}, "extensions": {EXTENSION: {}}}
        meta = {"io.modelcontextprotocol/serverInfo": about}
        answer(ident, {"supportedVersions": ["2026-07-28"], "capabilities": can, "_meta": meta})
    elif method == "tools/list":
        answer(ident, {"tools": listed()})
    elif method == "tools/call":
        call(ident, params)
    elif method in ("tasks/get", "tasks/cancel", "tasks/update", "tasks/result"):
        of_task(str(method), ident, params)
    elif ident is not None and method is not None:
        refuse(ident, -32601, "Method not found")


if __name__ == "__main__":
    for line in sys.stdin:
        handle(json.loads(line))
