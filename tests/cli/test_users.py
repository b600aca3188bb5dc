"""Users and operators from the shell: the ways to be known, tokens of the development issuer, and what `remit check` says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import Running, new_folder, remit, running

DEVELOPMENT = """
[development]
issuer = true
operators = { admin = ["role:boss"], viewer = ["group:support"] }
[development.users.ann]
roles = ["analyst"]
groups = ["support"]
[development.users.olga]
roles = ["boss"]
"""


def folder_with(folder: Path, auth: str, more: str = DEVELOPMENT) -> Path:
    """As `remit init` writes it, with other users."""
    new_folder(folder)
    file = folder / "remit.toml"
    text = file.read_text(encoding="utf-8").replace('auth = "local"', f'auth = "{auth}"')
    file.write_text(text.replace("[development]                # never where real users are\n", more), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Users are those of the development issuer; operators too."""
    with running(folder_with(tmp_path_factory.mktemp("users") / "new", "issuer")) as broker:
        yield broker


def token_file(broker: Running, user: str) -> Path:
    done = broker.remit("users", "token", user)
    assert done.code == 0, done.err
    file = broker.folder / f"{user}.token"
    file.write_text(done.out, encoding="utf-8")
    return file


def test_the_ready_line_names_the_development_issuer(broker: Running) -> None:
    assert broker.ready["development_issuer"] == broker.ready["http"] + "/development"
    assert "DEVELOPMENT ISSUER" in (broker.folder / "up.log").read_text(encoding="utf-8")


def test_its_users_are_listed(broker: Running) -> None:
    users = broker.json("users", "list")["users"]
    assert [user["user"] for user in users] == ["ann", "olga"]
    assert "ann" in broker.remit("users", "list").out


def test_a_token_for_nobody_is_refused_with_who_there_is(broker: Running) -> None:
    done = broker.remit("users", "token", "eve", "--json")
    assert done.code == 1 and done.error["rule"] == "development.user" and "ann, olga" in done.error["ask"]


def test_operators_come_with_a_token_and_do_what_they_may(broker: Running) -> None:
    boss, viewer = ({"REMIT_TOKEN_FILE": str(token_file(broker, user))} for user in ("olga", "ann"))
    done = broker.remit("agents", "add", "portal", "--json", env=boss)
    assert done.code == 0, done.err
    assert broker.remit("agents", "list", "--json", env=viewer).code == 0
    refused = broker.remit("agents", "add", "other", "--json", env=viewer)
    assert refused.code == 1 and refused.error["rule"] == "operators.operate" and "operator" in refused.error["ask"]
    none = broker.remit("agents", "list", "--json")
    assert none.code == 2 and "REMIT_TOKEN_FILE" in none.error["ask"]
    (broker.folder / "bad.token").write_text("e30.e30.AA")
    bad = broker.remit("agents", "list", "--json", env={"REMIT_TOKEN_FILE": str(broker.folder / "bad.token")})
    assert bad.code == 1 and bad.error["code"] == "UNAUTHENTICATED"


def test_a_task_is_opened_with_the_users_own_token(broker: Running) -> None:
    boss, ann = ({"REMIT_TOKEN_FILE": str(token_file(broker, user))} for user in ("olga", "ann"))
    broker.remit("agents", "add", "desk", env=boss)
    words = ("grant", "--to", "desk", "--scope", "mcp/**", "--json")
    own = broker.remit(*words, env=ann)  # for the caller
    theirs = broker.remit(*words, "--token-file", "-", stdin=token_file(broker, "ann").read_text(), env=boss)
    for done in (own, theirs):
        assert done.code == 0, done.err
        shown = (
            broker.remit("why", done.json()["txn"], env=boss).out
            + broker.remit("chain", done.json()["txn"], "--json", env=boss).out
        )
        assert '"user": "ann"' in shown.replace('":"', '": "') and "analyst" in shown and "development" in shown
    both = broker.remit(*words, "--token-file", "-", "--user", "eve", stdin="x", env=boss)
    assert both.code == 2 and "token" in both.error["message"]
    named = broker.remit(*words, "--user", "eve", env=ann)
    assert named.code == 1 and named.error["rule"] == "operators.operate"


def test_without_the_development_issuer_there_are_no_tokens(tmp_path: Path) -> None:
    done = remit("users", "token", "ann", "-c", str(new_folder(tmp_path / "new")), "--json")
    assert done.code == 2 and "[development]" in done.error["ask"]


@pytest.mark.parametrize("auth", ["local", "open", "issuer"])
def test_init_writes_every_way_to_be_known(tmp_path: Path, auth: str) -> None:
    folder = tmp_path / auth
    assert remit("init", str(folder), "--auth", auth, "--port", "0").code == 0
    done = remit("check", "-c", str(folder), "--json")
    (users,) = (part for part in done.json()["checks"] if part["check"] == "users")
    assert done.code == 0 and f"http.auth is {auth}" in users["said"]
    # The example of an issuer is nobody's: that it does not answer is a warning with the reason.
    assert ("warning, corp does not answer: " in users["said"]) == (auth == "issuer")
    assert ("everybody on this machine" in users["said"]) == (auth == "open")


def test_a_development_issuer_beside_a_real_one_starts_nowhere(tmp_path: Path) -> None:
    real = """
[[issuers]]
name = "corp"
issuer = "https://login.example.com"
audience = ["remit"]
claims = { user = { claim = "sub", prefix = "corp:" } }
"""
    folder = folder_with(tmp_path / "new", "local", real + DEVELOPMENT)
    for words in (("check",), ("up",)):
        done = remit(*words, "-c", str(folder), "--json")
        assert done.code == 2 and "beside corp" in done.error["message"] and "beside_real" in done.error["ask"]
    text = (folder / "remit.toml").read_text(encoding="utf-8")
    (folder / "remit.toml").write_text(text.replace("issuer = true", "issuer = true\nbeside_real = true"))
    done = remit("check", "-c", str(folder), "--json")
    assert done.code == 0 and "DEVELOPMENT ISSUER" in json.dumps(done.json())
