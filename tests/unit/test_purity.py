"""The pure packages take values and give values: what they may import is listed here, the rest is refused."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PURE = (ROOT / "schemas" / "remit_schemas", ROOT / "broker" / "remit_broker" / "core")

# An allow-list: a module nobody thought of is impure until somebody adds it here and says why in review.
STANDARD = {
    "__future__", "abc", "base64", "binascii", "bisect", "collections", "contextlib", "copy", "csv", "dataclasses", "datetime",
    "decimal", "difflib", "enum", "fnmatch", "functools", "hashlib", "heapq", "hmac", "html", "ipaddress", "itertools", "json",
    "math", "operator", "re", "string", "struct", "types", "typing", "unicodedata", "urllib.parse",
}  # fmt: skip
OTHERS = {"cedarpy", "immutables", "jsonschema_rs", "msgspec", "nacl", "re2", "rfc8785"}
OWN = {"remit_schemas", "remit_broker.core"}

IMPURE_NAMES = {"__import__", "breakpoint", "eval", "exec", "input", "open", "print"}
# What allowed modules offer that reads a clock or draws randomness.
IMPURE_ATTRIBUTES = {"now", "today", "utcnow", "generate", "urandom", "token_bytes", "random", "crypto_sign_keypair"}


def sources() -> list[Path]:
    return sorted(path for package in PURE for path in package.rglob("*.py"))


def impurities(source: str) -> Iterator[str]:
    """What a module does that a pure one must not, as ``line: what``."""
    for node in ast.walk(ast.parse(source)):
        for name in imported(node):
            if not allowed(name):
                yield f"{node.lineno}: imports {name}"  # type: ignore[attr-defined]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_NAMES:
            yield f"{node.lineno}: calls {node.func.id}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in IMPURE_ATTRIBUTES:
            yield f"{node.lineno}: calls .{node.func.attr}"
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith | ast.Global):
            yield f"{node.lineno}: {type(node).__name__}"


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""] if node.level == 0 else []
    return []


def allowed(module: str) -> bool:
    if module in STANDARD or module.split(".")[0] in OTHERS:
        return True
    if module.split(".")[0] in STANDARD and not module.startswith("urllib"):
        return True
    return any(module == own or module.startswith(own + ".") for own in OWN)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_pure_module_has_no_clock_no_randomness_and_no_io(path: Path):
    assert list(impurities(path.read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        "import asyncio",
        "import nats.aio.client",
        "from nats.js import api",
        "import sqlite3",
        "import aiosqlite",
        "from opentelemetry import trace",
        "import time",
        "def f():\n    from random import random",
        "import secrets",
        "import uuid",
        "import threading",
        "import os.path",
        "import socket",
        "import subprocess",
        "import urllib.request",
        "from remit_broker.ports import Clock",
        "from datetime import datetime\ndatetime.now()",
        "from nacl.signing import SigningKey\nSigningKey.generate()",
        "open('x')",
        "async def f(): ...",
    ],
)
def test_the_check_sees_what_is_impure(source: str):
    assert list(impurities(source))


def test_the_check_looks_at_both_packages():
    assert {path.relative_to(ROOT).parts[0] for path in sources()} == {"schemas", "broker"}
