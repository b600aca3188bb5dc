"""What can be checked of the documentation is: names of tests, links, errors, commands, routes, configuration keys."""

from __future__ import annotations

import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest
import typer.main

from remit_schemas.errors import SURFACES, Code

ROOT = Path(__file__).parents[2]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = [path for folder in ("schemas/remit_schemas", "agents_sdk/remit", "broker/remit_broker")
           for path in sorted((ROOT / folder).rglob("*.py"))]  # fmt: skip

TEST_ID = re.compile(r"tests/[\w/]+\.py(?:::\w+)*")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
COMMAND = re.compile(r"(?<![\w/.-])remit ((?:[a-z]+)(?: [a-z]+)?)")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def names_in(path: Path) -> frozenset[str]:
    """The tests of a file: functions, methods as ``Class::name``, and classes (a state machine's is one)."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            found |= {node.name, *(f"{node.name}::{item.name}" for item in node.body if hasattr(item, "name"))}
        elif isinstance(node, ast.Assign):
            # A state machine's test is a class that is made by assignment.
            found |= {name.id for name in node.targets if isinstance(name, ast.Name) and name.id.startswith("Test")}
    return frozenset(found)


@cache
def all_tests() -> frozenset[str]:
    """Every name of a test anywhere, and the names of the files without ``.py``."""
    files = list((ROOT / "tests").rglob("test_*.py"))
    return frozenset(name for file in files for name in names_in(file)) | {file.stem for file in files}


def exists(test: str) -> bool:
    file, _, name = test.partition("::")
    path = ROOT / file
    return path.is_file() and (not name or name in names_in(path))


@pytest.mark.parametrize("path", DOCS, ids=name_of)
def test_every_test_that_a_document_names_exists(path: Path) -> None:
    named = TEST_ID.findall(path.read_text(encoding="utf-8"))
    assert [test for test in named if not exists(test)] == []


def test_every_guarantee_names_a_test() -> None:
    rows = [
        line for line in (ROOT / "docs/guarantees.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")
    ]
    claims = [row for row in rows if not row.startswith(("| claim", "|---"))]
    assert claims
    assert [row for row in claims if not TEST_ID.search(row)] == []


def invariants() -> list[tuple[str, str]]:
    """Where an invariant stands, and the test it names. A comment may run over lines, so its marks are taken away."""
    found = []
    for path in SOURCES:
        text = re.sub(r"\n\s*# ?", " ", path.read_text(encoding="utf-8"))
        for match in re.finditer(r"INVARIANT:", text):
            statement = text[match.start() : match.start() + 400]
            named = re.search(r"\b(tests?[_/][\w/]*)", statement)
            found.append((name_of(path), named[1] if named else statement[:60]))
    return found


@pytest.mark.parametrize(("where", "test"), invariants())
def test_every_invariant_names_a_test_that_exists(where: str, test: str) -> None:
    assert test in all_tests() or (ROOT / test).is_dir()


@pytest.mark.parametrize("path", DOCS, ids=name_of)
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    broken = []
    for link in LINK.findall(path.read_text(encoding="utf-8")):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (path.parent / target).resolve() if target else path
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(link)
    assert broken == []


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_the_readme_is_at_most_200_lines() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_the_table_of_errors_is_that_of_the_code() -> None:
    text = (ROOT / "docs/wire.md").read_text(encoding="utf-8")
    table = text.partition("<!-- errors:begin -->")[2].partition("<!-- errors:end -->")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.strip().splitlines()[2:]]
    said = {
        Code(code.strip("`")): (int(http), int(jsonrpc), frame, int(exit_), retryable == "yes")
        for code, http, jsonrpc, frame, exit_, retryable, _ in rows
    }
    assert list(said) == list(Code)
    assert said == {code: tuple(surface) for code, surface in SURFACES.items()}


@cache
def commands() -> frozenset[str]:
    """Every command of the program, with those of its groups."""
    from remit_broker.cli.main import app

    group = typer.main.get_command(app)
    found: set[str] = set()
    for name, command in getattr(group, "commands", {}).items():
        found.add(name)
        found |= {f"{name} {sub}" for sub in getattr(command, "commands", {})}
    return frozenset(found)


def commands_in(text: str) -> list[str]:
    """``remit …`` in code: in-line or in a block."""
    blocks = re.findall(r"```(?:sh|console|)\n(.*?)```", text, re.DOTALL)
    inline = re.findall(r"`(remit [^`]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [found for code in [*blocks, *inline] for found in COMMAND.findall(code)]


@pytest.mark.parametrize("path", DOCS, ids=name_of)
def test_every_command_that_a_document_names_exists(path: Path) -> None:
    known = commands()
    groups = {command.split()[0] for command in known if " " in command}
    unknown = []
    for named in commands_in(path.read_text(encoding="utf-8")):
        first = named.split()[0]
        # The second word is a subcommand only where the first is a group; elsewhere it is an argument.
        if (named if first in groups and " " in named else first) not in known:
            unknown.append(named)
    assert unknown == []


def test_every_configuration_key_is_documented() -> None:
    from remit_broker.config import (
        ApprovalsConfig,
        BusConfig,
        Config,
        ContentConfig,
        HttpConfig,
        LimitsConfig,
        LogConfig,
        McpConfig,
        OAuthConfig,
        PolicyConfig,
        ResultsConfig,
        SecretsConfig,
        TracesConfig,
        VaultConfig,
    )  # fmt: skip
    from remit_broker.core.issuers import DevelopmentConfig, IssuerConfig

    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    sections = {
        "bus": BusConfig,
        "http": HttpConfig,
        "mcp": McpConfig,
        "limits": LimitsConfig,
        "log": LogConfig,
        "results": ResultsConfig,
        "approvals": ApprovalsConfig,
        "oauth": OAuthConfig,
        "secrets": SecretsConfig,
        "traces": TracesConfig,
        "vault": VaultConfig,
        "content": ContentConfig,
        "issuers": IssuerConfig,
        "development": DevelopmentConfig,
        "policy": PolicyConfig,
    }
    keys = [key for key in Config.__struct_fields__ if key not in sections]
    keys += [f"{section}.{key}" for section, kind in sections.items() for key in kind.__struct_fields__]
    assert [key for key in keys if f"`{key}`" not in text] == []


def test_every_route_of_the_http_edge_is_documented() -> None:
    text = (ROOT / "docs/wire.md").read_text(encoding="utf-8")
    source = (ROOT / "broker/remit_broker/edges/http/api.py").read_text(encoding="utf-8")
    routes = re.findall(r'\("(GET|POST|DELETE|PUT)", "(/api/[^"]+)"', source)
    assert routes
    assert [f"{method} {route}" for method, route in routes if f"`{method} {route}`" not in text] == []


def test_every_route_of_oauth_is_documented() -> None:
    text = (ROOT / "docs/oauth.md").read_text(encoding="utf-8")
    folder = ROOT / "broker/remit_broker/edges/http/oauth"
    routes = {route for file in folder.glob("*.py") for route in re.findall(r'"(/oauth/[a-z]+)"', file.read_text())}
    assert routes
    assert [route for route in routes if f"`{route}`" not in text] == []


def test_the_records_of_the_worked_example_are_a_valid_sequence() -> None:
    from remit_broker.core.fold import fold_all
    from remit_schemas.records import hash_of

    text = (ROOT / "docs/life-of-a-hop.md").read_text(encoding="utf-8")
    values = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL)]
    records = [value for value in values if "seq" in value]
    fold = fold_all(records)
    assert [record["kind"] for record in records] == ["txn.opened", "hop.opened", "hop.closed"]
    assert {value["rec"] for value in values if "rec" in value} == {records[0]["hash"], records[1]["hash"]}
    (refused,) = [value for value in values if value.get("kind") == "hop.refused"]
    assert refused["hash"] == hash_of(refused) and refused["txn"] == fold.txn


def test_the_whole_configuration_is_shown_as_it_is_written() -> None:
    from remit_broker.starter import starter

    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    assert starter("local", 7480) in text
