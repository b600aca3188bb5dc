"""Tenants from the shell: a configuration, everything that is theirs by ``--tenant``, and one that is taken out again."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from remit_broker.adapters.private_files import private_folder
from remit_broker.credentials import credentials_file
from tests.support.cli import SERVER, Running, new_folder, remit, running, until


def with_tenants(folder: Path, *names: str) -> Path:
    """Make ``names`` the tenants of a folder."""
    file = folder / "remit.toml"
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("[tenants.")]
    file.write_text("\n".join([*lines, *(f"[tenants.{name}]" for name in names), ""]), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A broker with a second tenant."""
    folder = with_tenants(new_folder(tmp_path_factory.mktemp("shared") / "broker"), "acme")
    with running(folder) as broker:
        broker.agent("planner")
        broker.json("agents", "add", "planner", "--tenant", "acme")
        yield broker


def test_an_agent_of_a_tenant_has_its_credentials_by_themselves(shared: Running) -> None:
    told = shared.json("agents", "add", "writer", "--tenant", "acme")
    path = Path(told["credentials"])
    assert path == shared.folder / "data" / "credentials" / "acme" / "writer.json" and told["tenant"] == "acme"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert json.loads(path.read_text(encoding="utf-8"))["tenant"] == "acme"
    names = {
        tenant: [one["name"] for one in shared.json("agents", "list", "--tenant", tenant)]
        for tenant in ("default", "acme")
    }
    assert names == {"default": ["planner"], "acme": ["planner", "writer"]}
    shared.json("agents", "remove", "writer", "--tenant", "acme")
    assert not path.exists()


def test_the_first_agent_of_a_tenant_makes_folders_that_nobody_else_reads(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "credentials"
    private_folder(folder.parent, create=True)
    for tenant in ("acme", "default"):
        path, _ = credentials_file(folder / tenant if tenant != "default" else folder, "planner", "agent", {}, tenant)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [stat.S_IMODE(one.stat().st_mode) for one in (folder, folder / "acme")] == [0o700, 0o700]


def test_a_server_and_a_call_of_a_tenant_are_its_own(shared: Running) -> None:
    shared.json("servers", "add", "tools", "--tenant", "acme", "--", sys.executable, str(SERVER))
    until(lambda: [one["state"] for one in shared.json("servers", "list", "--tenant", "acme")] == ["running"])
    assert shared.json("servers", "list") == []
    assert (shared.folder / "servers.acme.toml").exists() and not (shared.folder / "servers.toml").exists()
    tool = shared.json("servers", "list", "--tenant", "acme")[0]["serves"][0]
    call = ("call", f"mcp/tools/{tool}", "{}", "--as", "planner")
    refused = shared.remit(*call, "--json")
    assert refused.error["code"] == "UNKNOWN_TARGET" and "tools" not in refused.error["ask"].replace(
        f"mcp/tools/{tool}", ""
    )
    made = shared.remit(*call, "--tenant", "acme", "--json")
    assert "UNKNOWN_TARGET" not in made.out
    found = shared.json("chains", "--tenant", "acme")["chains"]
    mine = shared.json("chains")["chains"]
    assert len(found) == 1 and found[0]["txn"] not in json.dumps(mine)
    txn = found[0]["txn"]
    assert shared.json("chain", txn, "--tenant", "acme")["txn"] == txn
    assert shared.remit("chain", txn, "--json").error["rule"] == "api.unknown-txn"
    assert shared.remit("chain", txn[:8], "--json").code == 1
    file = shared.folder / "evidence.json"
    assert shared.remit("evidence", "export", txn, "-o", str(file), "--json").code == 1
    shared.json("evidence", "export", txn, "-o", str(file), "--tenant", "acme")
    keys = shared.folder / "data" / "jwks.json"
    assert remit("evidence", "verify", str(file), "--keys", str(keys)).code == 0
    shared.json("servers", "remove", "tools", "--tenant", "acme")


def test_a_tenant_is_where_something_is_revoked_or_what_is(shared: Running) -> None:
    grant = ("grant", "--user", "ann", "--to", "planner", "--scope", "mcp/**")
    said = shared.remit("revoke", "--agent", "planner", "--tenant", "acme", "--why", "lost").out
    assert "remit reinstate --agent planner --tenant acme" in said
    assert shared.remit(*grant, "--tenant", "acme", "--json").error["rule"] == "revoked.agent"
    shared.json(*grant)
    assert shared.json("revocations")["revocations"] == []
    shared.json("reinstate", "--agent", "planner", "--tenant", "acme")
    shared.json("revoke", "--tenant", "acme")
    assert shared.remit(*grant, "--tenant", "acme", "--json").error["rule"] == "revoked.tenant"
    shared.json(*grant)
    shared.json("reinstate", "--tenant", "acme")
    shared.json(*grant, "--tenant", "acme")


@pytest.mark.parametrize(
    "words",
    [
        ("agents", "list"), ("agents", "add", "x"), ("servers", "list"), ("chains",), ("budgets",), ("revocations",),
        ("call", "mcp/a/b", "--as", "planner"), ("attach", "x", "--url", "http://127.0.0.1:1"), ("approvals", "list"),
    ],
)  # fmt: skip
def test_a_tenant_that_is_not_there_is_said_to_be_so(shared: Running, words: tuple[str, ...]) -> None:
    done = shared.remit(*words, "--tenant", "nowhere", "--json")
    assert done.code in (1, 2) and "no tenant 'nowhere'" in done.error["message"]


def test_names_that_cannot_be_and_caps_of_nobody_are_refused_by_check(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "broker")
    file = folder / "remit.toml"
    whole = file.read_text(encoding="utf-8")
    for more, said in (
        ('[tenants."Acme"]', "cannot name a tenant"), ('[tenants."a.b"]', "cannot name a tenant"),
        ("[tenants.acme]\n[tenants.acme]", "is not TOML"), ('[tenants.acme]\nprice = "x"', "there is no such key"),
        ('[caps.tenant.nobody]\nday = "calls=1"', "there is no such tenant"),
        ("\n".join(f"[tenants.t{n}]" for n in range(64)), "at most 64"),
    ):  # fmt: skip
        file.write_text(f"{whole.replace('[tenants] ', '# ').replace('[caps] ', '# ')}\n{more}\n", encoding="utf-8")
        done = remit("check", "-c", str(folder), "--json")
        assert done.code == 2 and said in done.error["message"] and done.error["ask"], more


@pytest.mark.timeout(180)  # three brokers are started
def test_what_a_removed_tenant_left_open_is_told(tmp_path: Path) -> None:
    folder = with_tenants(new_folder(tmp_path / "broker"), "acme")
    with running(folder) as broker:
        broker.json("agents", "add", "planner", "--tenant", "acme")
        broker.json("grant", "--tenant", "acme", "--user", "ann", "--to", "planner", "--scope", "mcp/**", "--ttl", "1h")
    with_tenants(folder)
    with running(folder) as broker:
        log = (folder / "up.log").read_text(encoding="utf-8")
        assert "tenant acme is in the configuration no more, but 1 of its tasks are open" in log
        found = [
            one for one in remit("doctor", "--json", "-c", str(folder)).json()["checks"] if one["check"] == "tenants"
        ]
        assert [one["state"] for one in found] == ["note"] and "[tenants.acme]" in found[0]["ask"]
        assert broker.remit("chains", "--tenant", "acme", "--json").error["rule"] == "api.tenant"
    with_tenants(folder, "acme")
    with running(folder) as broker:
        (task,) = broker.json("chains", "--tenant", "acme")["chains"]
        assert task["reason"] is None
        assert [one["name"] for one in broker.json("agents", "list", "--tenant", "acme")] == ["planner"]
