"""``remit init`` and ``remit check``: a folder to start in, and whether it is right."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from remit_broker.cli.checking import checks
from remit_broker.config import load
from tests.support.cli import Running, new_folder, remit


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return new_folder(tmp_path / "here")


def failing(folder: Path) -> dict[str, str]:
    """What ``remit check`` looks at and finds wrong, by part."""
    found = [part for part in checks(load(str(folder))) if not part.ok]
    assert all(part.ask for part in found)
    return {part.check: part.said for part in found}


def test_what_init_writes_passes_the_check(folder: Path) -> None:
    done = remit("check", "-c", str(folder), "--json")
    assert (done.code, done.json()["ok"]) == (0, True)
    assert (folder / "policies" / "default.cedar").exists()


def test_init_says_what_it_wrote_and_how_to_start(tmp_path: Path) -> None:
    done = remit("init", "here", cwd=tmp_path)
    assert done.code == 0
    assert str(tmp_path / "here" / "remit.toml") in done.out
    assert "remit up -c here" in done.out


def test_init_as_json_names_the_files(tmp_path: Path) -> None:
    found = remit("init", str(tmp_path / "here"), "--json").json()
    assert found == {"config": str(tmp_path / "here/remit.toml"), "policies": str(tmp_path / "here/policies")}


def test_init_overwrites_nothing(folder: Path) -> None:
    (folder / "remit.toml").write_text("# mine\n")
    (folder / "policies" / "default.cedar").write_text("// mine\n")
    done = remit("init", str(folder))
    assert done.code == 2
    assert "exists" in done.err
    assert (folder / "remit.toml").read_text() == "# mine\n"
    (folder / "remit.toml").unlink()
    assert remit("init", str(folder)).code == 0
    assert (folder / "policies" / "default.cedar").read_text() == "// mine\n"


@pytest.mark.parametrize("words", [["--port", "70000"], ["--port", "x"], ["--auth", "none"], []])
def test_init_with_wrong_words_is_wrong_usage(tmp_path: Path, words: list[str]) -> None:
    where = [str(tmp_path / "here")] if words else []
    assert remit("init", *where, *words).code == 2
    assert not (tmp_path / "here").exists()


def test_init_where_a_file_stands_says_so(tmp_path: Path) -> None:
    (tmp_path / "here").write_text("")
    done = remit("init", str(tmp_path / "here"))
    assert done.code == 2
    assert str(tmp_path / "here") in done.err


@pytest.mark.parametrize("name", ["remit.toml", ""])
def test_the_configuration_is_a_file_or_its_folder(folder: Path, name: str) -> None:
    assert remit("check", "-c", str(folder / name)).code == 0


def test_the_configuration_of_the_working_folder_is_the_default(folder: Path) -> None:
    assert remit("check", cwd=folder).code == 0


def test_no_configuration_says_where_it_was_looked_for_and_how_to_make_one(tmp_path: Path) -> None:
    done = remit("check", cwd=tmp_path, env={"XDG_CONFIG_HOME": str(tmp_path)})
    assert done.code == 2
    assert "./remit.toml" in done.err
    assert "remit init" in done.err


def test_a_broken_configuration_is_named_with_its_key(folder: Path) -> None:
    (folder / "remit.toml").write_text("[bus]\nsynk = 1\n")
    done = remit("check", "-c", str(folder), "--json")
    assert done.code == 2
    assert f"{folder / 'remit.toml'}: bus.synk: there is no such key" in done.error["message"]


def test_everything_that_is_wrong_is_found_at_once(folder: Path) -> None:
    (folder / "policies" / "broken.cedar").write_text("permit(principal action")
    (folder / "servers.toml").write_text("x = [")
    (folder / "servers.toml").chmod(0o600)
    (folder / "data").write_text("")
    done = remit("check", "-c", str(folder), "--json")
    assert (done.code, done.json()["ok"]) == (2, False)
    wrong = [part for part in done.json()["checks"] if not part["ok"]]
    assert [part["check"] for part in wrong] == ["policies", "keys", "servers"]
    shown = remit("check", "-c", str(folder))
    assert shown.code == 2
    assert all(part["said"] in shown.out and part["ask"] in shown.out for part in wrong)


def test_a_policy_that_does_not_fit_the_schema_is_found(folder: Path) -> None:
    (folder / "policies" / "typo.cedar").write_text(
        '@id("x") @reason("y") permit(principal, action, resource) when { context.nonsense == 1 };\n'
    )
    assert "typo.cedar" in failing(folder)["policies"]


def test_a_server_whose_program_is_missing_is_found(folder: Path) -> None:
    (folder / "servers.toml").write_text('[servers.git]\ncommand = ["no-such-program-here"]\n')
    (folder / "servers.toml").chmod(0o600)
    assert failing(folder) == {"servers": "git: there is no program no-such-program-here"}


def test_a_servers_file_that_others_can_change_is_found(folder: Path) -> None:
    (folder / "servers.toml").write_text("")
    (folder / "servers.toml").chmod(0o666)
    assert "chmod 600" in failing(folder)["servers"]


def test_a_port_that_is_taken_is_found(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (folder / "remit.toml").write_text(f"[http]\nport = {port}\n")
        assert f"http.port {port}" in failing(folder)["ports"]


def test_a_running_broker_is_seen_and_its_keys_are_checked(broker: Running) -> None:
    found = {part["check"]: part["said"] for part in broker.json("check")["checks"]}
    assert found["ports"] == f"a broker runs at {broker.ready['http']}"
    assert "signing with" in found["keys"]


def test_a_key_that_others_can_read_is_found(broker: Running) -> None:
    key = broker.folder / "data" / "keys" / "digest.key"
    key.chmod(0o644)
    try:
        assert f"{key} can be read or changed by others" in failing(broker.folder)["keys"]
    finally:
        key.chmod(0o600)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert remit("init", str(tmp_path / "here")).code == 2
