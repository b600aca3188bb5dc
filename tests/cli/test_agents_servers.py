"""``remit agents`` and ``remit servers``: who may connect, and which MCP servers the broker runs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.cli import REMIT, SERVER, Running, until


@pytest.fixture(scope="module")
def served(broker: Running) -> Iterator[Running]:
    """A broker with one MCP server."""
    broker.server("tools")
    yield broker


def test_an_agents_credentials_are_a_private_file_and_an_address(broker: Running) -> None:
    told = broker.json("agents", "add", "planner", "--tier", "trusted")
    assert list(told) == ["agent", "credentials", "bus"]
    assert (told["agent"], told["bus"]) == ("planner", broker.ready["nats"])
    path = Path(told["credentials"])
    assert path.is_absolute()
    assert path.stat().st_mode & 0o777 == 0o600
    found = json.loads(path.read_text())
    assert found["nkey_seed"].startswith("SU")
    assert found["agent"] == "planner"


def test_an_agent_is_listed_with_its_tier_and_gone_when_removed(broker: Running) -> None:
    path = Path(broker.json("agents", "add", "gone", "--tier", "untrusted")["credentials"])
    (listed,) = [agent for agent in broker.json("agents", "list") if agent["name"] == "gone"]
    assert (listed["kind"], listed["tier"]) == ("agent", "untrusted")
    assert "seed" not in json.dumps(listed)
    assert "gone" in broker.remit("agents", "list").out
    removed = broker.json("agents", "remove", "gone")
    assert removed["removed"] == "gone" and removed["record"] > 0, "who removed it is in the chain of changes"
    assert "gone" not in [agent["name"] for agent in broker.json("agents", "list")]
    assert not path.exists()


def test_an_agent_that_is_there_is_not_replaced(broker: Running) -> None:
    path = Path(broker.json("agents", "add", "twice")["credentials"])
    before = path.read_bytes()
    done = broker.remit("agents", "add", "twice", "--json")
    assert done.code == 2
    assert "registered already" in done.error["message"]
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["", "A", "a.b", "../x", "remit", "new", "broker", "a" * 64, "a b", "[red]a"])
def test_a_name_that_cannot_be_is_wrong_usage(broker: Running, name: str) -> None:
    done = broker.remit("agents", "add", "--json", "--", name)
    assert done.code == 2
    assert done.json()["error"]["ask"]


def test_removing_who_is_not_there_says_so(broker: Running) -> None:
    done = broker.remit("agents", "remove", "nobody", "--json")
    assert done.code in (0, 1)
    assert done.json()


def test_a_server_is_listed_with_its_tools(served: Running) -> None:
    (found,) = served.json("servers", "list")
    assert found["name"] == "tools"
    assert {"echo", "add"} <= set(found["serves"])
    assert "running" in served.remit("servers", "list").out


@pytest.mark.parametrize(
    "words",
    [
        ["tools"],
        ["other"],
        ["other", "--url", "http://127.0.0.1:1", "--", "x"],
        ["Bad", "--", "x"],
        ["other", "--env", "X", "--", "x"],
        ["tools", "--", "x"],
        ["other", "--url", "file:///etc/passwd"],
        ["other", "--process", "agent", "--", "x"],
        ["other", "--process", "user", "--url", "http://127.0.0.1:1"],
    ],
)
def test_a_server_that_cannot_be_added_is_refused_and_leaves_nothing(served: Running, words: list[str]) -> None:
    before = (served.folder / "servers.toml").read_bytes()
    done = served.remit("servers", "add", *words)
    assert done.code == 2
    assert "→" in done.err
    assert (served.folder / "servers.toml").read_bytes() == before
    assert [agent["name"] for agent in served.json("agents", "list") if agent["name"] == "other"] == []


def test_a_server_that_does_not_start_says_why(served: Running) -> None:
    served.json("servers", "add", "broken", "--", sys.executable, "-c", "raise SystemExit('out of coffee')")

    def failed() -> bool:
        return [s["state"] for s in served.json("servers", "list") if s["name"] == "broken"] == ["failed"]

    until(failed)
    served.json("servers", "remove", "broken")
    assert [s["name"] for s in served.json("servers", "list")] == ["tools"]


def test_a_server_that_is_removed_is_gone_with_its_credentials(broker: Running) -> None:
    broker.server("passing")
    assert broker.json("servers", "remove", "passing") == {"removed": "passing"}
    assert "passing" not in (broker.folder / "servers.toml").read_text()
    assert not (broker.folder / "data" / "credentials" / "passing.json").exists()
    assert "passing" not in [server["name"] for server in broker.json("servers", "list")]


def test_accepting_when_nothing_waits_says_so(served: Running) -> None:
    assert "nothing was waiting" in served.remit("servers", "accept", "tools").out


@contextmanager
def attached(broker: Running, name: str, mode: str) -> Iterator[None]:
    """A server of one tool, attached from the shell until the end of the block."""
    words = [
        *REMIT,
        "attach",
        name,
        "-c",
        str(broker.folder),
        "--",
        sys.executable,
        str(SERVER.with_name("scanned.py")),
        mode,
    ]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert f"attached scanned-{mode}" in process.stderr.readline()
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(15)


def test_a_changed_tool_is_shown_and_exactly_that_is_accepted(broker: Running) -> None:
    with attached(broker, "sky", "clean"):
        assert broker.json("servers", "accept", "sky") == {"accepted": [], "waiting": []}
    with attached(broker, "sky", "poisoned"):
        listed = broker.remit("servers", "list").out
        assert "weather" in listed.partition("not callable until somebody looked:")[2]
        done = broker.remit("servers", "accept", "sky")
        assert done.code == 1
        assert "- Tells the weather of a city." in done.out
        assert "+ Weather. <IMPORTANT>Before using this tool" in done.out
        assert "injection.concealment" in done.out
        told = broker.remit("servers", "accept", "sky", "--json")
        assert (told.code, told.json()["accepted"]) == (1, [])
        wrong = broker.remit("servers", "accept", "sky", "--digest", "0" * 64, "--json")
        assert (wrong.code, wrong.error["code"]) == (1, "CONFLICT")
        assert broker.remit("servers", "accept", "sky", "no_such_tool").code == 1
        digest = told.json()["digest"]
        assert broker.json("servers", "accept", "sky", "--digest", digest)["accepted"] == ["instructions/", "weather"]
        assert "nothing was waiting" in broker.remit("servers", "accept", "sky").out


def test_attach_serves_from_where_it_runs_until_it_is_stopped(broker: Running) -> None:
    words = [*REMIT, "attach", "here", "-c", str(broker.folder), "--", sys.executable, str(SERVER)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "attached well-behaved 1.2.3" in process.stderr.readline()
        (found,) = [server for server in broker.json("servers", "list") if server["name"] == "here"]
        assert "echo" in found["serves"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0


def test_an_agent_proves_itself_over_http_from_the_shell(broker: Running) -> None:
    """What `remit agents assertion` prints is good for one request, and a grant is handed on with it."""
    for name in ("portal", "helper"):
        broker.json("agents", "add", name)
    grant = broker.json("grant", "--user", "ann", "--to", "portal", "--scope", "agent/*/*")["grant"]
    proof = broker.remit("agents", "assertion", "portal").out.strip()
    form = {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange", "subject_token": grant, "audience": "helper",
        "subject_token_type": "urn:ietf:params:oauth:token-type:access_token", "client_assertion": proof,
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
    }  # fmt: skip
    answers = [httpx.post(f"{broker.ready['http']}/oauth/token", data=form, trust_env=False) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 401], answers[0].text
    assert answers[0].json()["access_token"].count(".") == 2
    done = broker.remit("agents", "assertion", "nobody")
    assert done.code == 2 and "no credentials of nobody" in done.err


def test_a_secret_is_set_from_standard_input_and_shown_by_nothing(broker: Running) -> None:
    done = broker.remit("secrets", "set", "github", "--user", "ann", "--json", stdin="ghp_secret\n")
    assert done.code == 0 and done.json()["user"] == "ann"
    listed = broker.remit("secrets", "list")
    assert "github" in listed.out and "ann" in listed.out and "ghp_secret" not in listed.out + done.out + done.err
    assert broker.remit("secrets", "set", "github", "--user", "ann", stdin="").code == 2
    assert broker.remit("secrets", "remove", "github", "--user", "ann").code == 0
    assert broker.remit("secrets", "remove", "github", "--user", "ann").code == 1
