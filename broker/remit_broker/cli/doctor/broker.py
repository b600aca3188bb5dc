"""What the running broker says: readiness, the other replicas, the index, the servers, and what waits to be closed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from remit_broker.cli.client import BrokerClient
from remit_broker.cli.doctor.finding import Finding, note, ok, wrong

SILENT: Final = 2.0
BEHIND: Final = 5000
SAME: Final = {
    "keys": "bring the first broker's keys to the others: remit keys export, remit keys import",
    "policy": "give all the same policies; each broker takes what changes in its own folder",
    "config": "give all the same issuer, limits, policy, prices, labels, endorsers, content, tool_groups, caps, rates and tenants",
    "version": "run the same version everywhere once an upgrade is done",
}
"""What replicas must agree on, and what to do where they do not."""


def look(client: BrokerClient) -> Iterator[Finding]:
    """Everything that ``/api`` tells."""
    status = client.get("/api/status")
    if "replicas" not in status:
        yield ok(
            "broker", f"{client.http}, version {status['version']}; you are told of tenant {status['tenant']} alone"
        )
        yield from servers(client.get("/api/servers")["servers"])
        return
    if troubles := status["troubles"]:
        for part, cause in troubles.items():
            yield wrong("broker", f"{part}: {cause}", "see docs/operations.md, When something is wrong")
    else:
        yield ok("broker", f"{client.http}, version {status['version']}, replica {status['replica']}")
    if status["paused"]:
        yield note("broker", f"paused by {status['paused']['who']}: {status['paused']['why']}", "remit reinstate --all")
    yield from replicas(status)
    yield _lag(status.get("index"))
    for name, count in status["removed_tenants"].items():
        yield note(
            "tenants", f"{name} is in remit.toml no more, but {count} of its tasks are open",
            f"nobody can go on with them, they end when their time is over; to go on put [tenants.{name}] back",
        )  # fmt: skip
    yield from servers(client.get("/api/servers")["servers"])
    yield _orphans(status["orphans"])


def replicas(status: dict[str, Any]) -> Iterator[Finding]:
    """Whether all are there and of one mind."""
    listed = [one for one in status["replicas"] if one.get("role") != "callout"]
    for one in listed:
        if one["silent"] > SILENT:
            yield wrong(
                "replicas", f"{one['replica']} on {one.get('host')} has been silent for {one['silent']:.0f} s",
                "see that it runs; its hops are closed once their grants have expired",
            )  # fmt: skip
        if bad := one.get("policy_trouble"):
            yield wrong(
                "policies", f"{one['replica']} on {one.get('host')} does not take an edit that is not valid: {bad}",
                "mend the file: remit policy check; until then the policies before it are in force",
            )  # fmt: skip
    group = status["group"]
    if group["alive"] < group["expected"]:
        said = f"{group['alive']} of {group['expected']} processes of this broker live"
        yield wrong("replicas", said, "its log says why the others ended; they are started again")
    for what, ask in SAME.items():
        values = {str(one.get(what)): one["replica"] for one in listed}
        if len(values) > 1:
            yield wrong(
                "replicas",
                f"they differ in {what}: " + ", ".join(f"{who} {value}" for value, who in values.items()),
                ask,
            )
    if all(one["silent"] <= SILENT for one in listed):
        yield ok("replicas", f"{len(listed)} alive on {len({one.get('host') for one in listed})} machine(s)")


def _lag(index: dict[str, Any] | None) -> Finding:
    behind = max(0, index["ledger"] - index["position"]) if index else 0
    if behind > BEHIND:
        return note("index lag", f"{behind} records behind the ledger", "listings are late; it catches up by itself")
    return ok("index lag", f"{behind} records")


def servers(states: list[dict[str, Any]]) -> Iterator[Finding]:
    for state in states:
        if state.get("state") == "failed":
            yield wrong(
                "servers", f"{state['name']}: {state.get('reason')}", "mend it in servers.toml; it is tried again"
            )
        if waiting := state.get("waiting"):
            what = f"{state['name']}: {', '.join(waiting[:5])}{' …' if len(waiting) > 5 else ''} cannot be called until accepted"
            yield note("servers", what, f"remit servers accept {state['name']}")
        if refused := state.get("refused"):
            yield note(
                "servers", f"{state['name']}: {len(refused)} of what it lists cannot be used, such as {refused[0]}",
                "mend it in the server; the rest of it is there",
            )  # fmt: skip
        for name, same in state.get("collisions", {}).items():
            if state["name"] == min(one.split("/")[1] for one in same):
                yield note(
                    "servers", f"{name} at /mcp is the name of several tools, and none of them is called there: {', '.join(same)}",
                    "rename one of the servers, or have clients use /mcp/<server>",
                )  # fmt: skip
    if states and not any(state.get("state") == "failed" for state in states):
        yield ok("servers", ", ".join(str(state["name"]) for state in states))


def _orphans(waiting: list[dict[str, Any]]) -> Finding:
    if not waiting:
        return ok("orphans", "no hop waits to be closed")
    return note(
        "orphans", f"{len(waiting)} open hops whose replica is silent or whose deadline is over, such as {waiting[0]['hop']}",
        "they are closed by the scan once their grants have expired",
    )  # fmt: skip
