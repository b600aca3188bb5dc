"""Questions for policy, and folders of policies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from remit_broker.adapters.cedar import CedarEngine, packaged
from remit_broker.core.policy import PolicyRequest
from remit_broker.core.registry import Annotations
from remit_schemas.budget import Budget
from remit_schemas.names import Resource

READS = Annotations(read_only=True, destructive=False)
WRITES = Annotations(read_only=False, destructive=False)
DESTROYS = Annotations(read_only=False, destructive=True)
TOOL = Resource("mcp", "files", "read_file")
SKILL = Resource("agent", "critic", "review")
MONDAY_9 = 1_790_586_000
"""2026-09-28T09:00:00Z."""


def asked(**changes: Any) -> PolicyRequest:
    """An ordinary question with some things changed."""
    usual: dict[str, Any] = {
        "action": "call",
        "tenant": "default",
        "user": "ann",
        "caller": "researcher",
        "caller_tier": "standard",
        "resource": TOOL,
        "target_tier": "standard",
        "annotations": READS,
        "depth": 2,
        "actors": ("researcher", "planner"),
        "tiers": ("standard",),
        "left": Budget(500_000, 1000, 12),
        "now": MONDAY_9,
    }
    return PolicyRequest(**{**usual, **changes})


def written(folder: Path, **files: str) -> Path:
    """``folder`` with these policy files (``name="text"``)."""
    for name, text in files.items():
        (folder / f"{name}.cedar").write_text(text, encoding="utf-8")
    return folder


def engine(folder: Path, *policies: str) -> CedarEngine:
    """An engine with the starter policies and ``policies``."""
    return CedarEngine.load(written(folder, default=packaged("default.cedar"), own="\n".join(policies)))
