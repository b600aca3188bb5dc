"""``servers.toml``: the only place from which commands are taken."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit_broker.edges.attach.containment import Limits, Room
from remit_broker.edges.attach.servers_file import ServerEntry, ServersFileError, read_servers, write_servers
from remit_broker.edges.attach.source import HttpSource, SourceError, StdioSource, source

ROOM = Room((Path("/srv/a b"), Path('/srv/"')), (Path("/srv/out"),), network=True)
WORD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_no_file_is_no_servers(tmp_path: Path) -> None:
    assert read_servers(tmp_path / "servers.toml") == {}


@given(
    command=st.lists(WORD, min_size=1, max_size=4),
    env=st.dictionaries(st.from_regex(r"\A[A-Z_]{1,8}\Z"), WORD, max_size=3),
)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, command: list[str], env: dict[str, str]
) -> None:
    folder = tmp_path_factory.mktemp("servers")
    entries = {
        "local": ServerEntry("local", StdioSource(tuple(command), folder, env)),
        "room": ServerEntry("room", StdioSource(tuple(command), None, env, ROOM, Limits(memory=5, cpu=60))),
        "remote": ServerEntry("remote", HttpSource("https://mcp.example.org/mcp?a=b")),
    }
    write_servers(folder / "servers.toml", entries)
    assert read_servers(folder / "servers.toml") == entries
    assert (folder / "servers.toml").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o602])
def test_a_servers_file_others_can_change_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ServersFileError, match="chmod 600"):
        read_servers(write(tmp_path / "servers.toml", "", mode))


def test_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "servers.toml").symlink_to(write(tmp_path / "real.toml", ""))
    with pytest.raises(ServersFileError, match="not a link"):
        read_servers(tmp_path / "servers.toml")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[servers.git]\n", "either a command or a url"),
        ('[servers.git]\ncommand = ["x"]\nread = ["/srv"]\n', "contain = true"),
        ('[servers.git]\ncommand = ["x"]\nnetwork = true\n', "contain = true"),
        ('[servers.git]\ncommand = ["x"]\ncontain = "yes"\n', "true or false"),
        ('[servers.git]\ncommand = ["x"]\ncontain = true\nwrite = ["out"]\n', "absolute"),
        ('[servers.git]\ncommand = ["x"]\nlimits = { memory = "1G" }\n', "whole numbers"),
        ('[servers.git]\ncommand = ["x"]\nlimits = { sockets = 1 }\n', "whole numbers"),
        ('[servers.git]\nurl = "https://x"\ncontain = true\n', "for a command"),
        ('[servers.git]\ncommand = "sh -c x"\n', "list of words"),
        ('[servers.git]\ncommand = ["x", 1]\n', "list of words"),
        ('[servers.git]\ncommand = ["x"]\nurl = "http://x/"\n', "either a command or a url"),
        (
            '[servers.git]\ncommand = ["x"]\nshell = true\n',
            "servers.git.shell: allowed are command, contain, cwd, env, idle, limits, network, process, processes, read, url, write",
        ),
        ('[servers.git]\ncommand = ["x"]\nenv = {"A=B" = "x"}\n', "variable name"),
        ('[servers.git]\ncommand = ["x"]\nenv = {A = 1}\n', "variable name"),
        ('[servers.git]\ncommand = ["x"]\ncwd = "/no/such/folder"\n', "not a folder"),
        ('[servers.Git]\ncommand = ["x"]\n', "a name is"),
        ('[servers.remit]\ncommand = ["x"]\n', "reserved"),
        ('[server.git]\ncommand = ["x"]\n', r"only \[servers.NAME\]"),
        ("servers = 3\n", "only"),
        ("[servers", "servers.toml"),
    ],
)
def test_bad_entries_name_the_place_and_what_is_allowed(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ServersFileError, match=says) as caught:
        read_servers(write(tmp_path / "servers.toml", text))
    assert "\n" not in str(caught.value).strip() and "servers.toml" in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["", "file:///etc/passwd", "http://", "http://user:secret@host/mcp", "http://host:x/", "http://h/#f", "//host/mcp"],
)
def test_urls_that_are_not_plain_http_are_refused(url: str) -> None:
    with pytest.raises(SourceError):
        source(url=url)
