"""A record as an event of the Open Cybersecurity Schema Framework: class API Activity (6003), version 1.8.0. Pure.

What the class has a place for stands there; the record as a whole, with its hash, is under ``unmapped``, so that nothing is lost on
the way and what a SIEM keeps can be checked against the evidence. Source: schema.ocsf.io/1.8.0/classes/api_activity.
"""

from __future__ import annotations

from typing import Any, Final

from remit_broker.core.times import seconds_of
from remit_schemas.errors import Code

VERSION: Final = "1.8.0"
CLASS: Final = 6003
CATEGORY: Final = 6

CREATE, READ, UPDATE, DELETE, OTHER = 1, 2, 3, 4, 99
INFORMATIONAL, LOW, MEDIUM, HIGH = 1, 2, 3, 4
SUCCESS, FAILURE = 1, 2

_ACTIVITY: Final = {
    "txn.opened": CREATE, "grant.renewed": UPDATE, "approval.requested": CREATE, "approval.decided": UPDATE,
    "grant.revoked": DELETE,
}  # fmt: skip
_SEVERITY: Final = {
    Code.UNAUTHENTICATED: MEDIUM, Code.GRANT_INVALID: MEDIUM, Code.GRANT_REVOKED: MEDIUM, Code.TARGET_QUARANTINED: MEDIUM,
    Code.CONTENT_DENIED: HIGH, Code.RESULT_DENIED: HIGH,
}  # fmt: skip
"""Of what went wrong, beside LOW for all other codes."""


def event(record: dict[str, Any], user: str, product: str) -> dict[str, Any]:
    """The event of one record. ``user`` is whose task it is, where that is known; ``product`` the version of the broker."""
    kind, code = record["kind"], record.get("code")
    activity, name = _activity(record)
    failed = _failed(record)
    said: dict[str, Any] = {
        "class_uid": CLASS,
        "class_name": "API Activity",
        "category_uid": CATEGORY,
        "category_name": "Application Activity",
        "activity_id": activity,
        "activity_name": name,
        "type_uid": CLASS * 100 + activity,
        "time": round(seconds_of(record["at"]) * 1000),
        "severity_id": _SEVERITY.get(code, LOW) if failed and code else LOW if failed else INFORMATIONAL,
        "status_id": FAILURE if failed else SUCCESS,
        "message": f"{kind}: {_what(record)}",
        "metadata": {
            "version": VERSION,
            "product": {"name": "Remit", "vendor_name": "Remit", "version": product},
            "uid": record["hash"],
            "event_code": kind,
            "correlation_uid": record["txn"] or record["hop"],
            "tenant_uid": record["tenant"],
            "original_time": record["at"],
            "log_name": "refusals" if kind == "hop.refused" else "ledger",
            "log_version": str(record["v"]),
        },
        "actor": _actor(record, user),
        "api": _api(record),
        "src_endpoint": {"name": _caller(record) or user or record["by"], "instance_uid": record["by"]},
        "unmapped": {"remit": record},
    }
    if code:
        said["status_code"] = code
    if detail := record.get("reason") or record.get("message") or record.get("rule"):
        said["status_detail"] = detail
    if "seq" in record:
        said["metadata"]["sequence"] = record["seq"]
    if resource := record.get("resource"):
        parts = resource.split("/")
        said["resources"] = [{"name": resource, "uid": resource, "type": parts[0]}]
        if len(parts) == 3:
            said["dst_endpoint"] = {"name": parts[1], "svc_name": parts[1]}
    if kind == "hop.closed":
        said["duration"] = record["ms"]
    if kind == "hop.refused" and record["count"] > 1:
        said["count"] = record["count"]
    return said


def _activity(record: dict[str, Any]) -> tuple[int, str]:
    """What was done, and its name: a call of a target that says it only reads is a read; what another call does nobody knows."""
    kind = record["kind"]
    if kind == "hop.opened" and "r" in ((record.get("facts") or {}).get("hints", "")):
        return READ, "Read"
    names = {CREATE: "Create", UPDATE: "Update", DELETE: "Delete"}
    found = _ACTIVITY.get(kind)
    return (found, names[found]) if found else (OTHER, kind)


def _failed(record: dict[str, Any]) -> bool:
    if record["kind"] == "approval.decided":
        return bool(record["verdict"] == "deny")
    return bool(record["kind"] == "hop.refused" or record.get("outcome", "ok") != "ok")


def _caller(record: dict[str, Any]) -> str:
    """Who acted: an agent, or whoever decided or revoked."""
    return str(record.get("caller") or record.get("who") or record.get("agent") or "")


def _actor(record: dict[str, Any], user: str) -> dict[str, Any]:
    actor: dict[str, Any] = {}
    if record["kind"] == "approval.decided":
        user = record["user"]
    if user:
        actor["user"] = {"name": user, "uid": user}
        if roles := record.get("roles"):
            actor["user"]["groups"] = [{"name": role, "type": "role"} for role in roles]
    actor["app_name"] = _caller(record) or record["by"]
    return actor


def _api(record: dict[str, Any]) -> dict[str, Any]:
    parts = str(record.get("resource") or "").split("/")
    api: dict[str, Any] = {"operation": record["kind"], "request": {"uid": record["hop"]}}
    if len(parts) == 3:
        api |= {"operation": parts[2], "service": {"name": f"{parts[0]}/{parts[1]}"}}
    if code := record.get("code"):
        api["response"] = {"error": code}
        if rule := record.get("rule"):
            api["response"]["error_message"] = rule
    return api


def _what(record: dict[str, Any]) -> str:
    for key in ("resource", "outcome", "reason", "agent", "jti", "id"):
        if record.get(key):
            return str(record[key])
    return str(record["hop"])
