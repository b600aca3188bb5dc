"""The configuration: what is wrong is named by file, key and what is allowed there; nothing wrong is taken."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit_broker.adapters.errors import ConfigError
from remit_broker.config import (
    Config,
    cycle,
    find,
    load,
    settings,
)
from remit_broker.core.issuers import DevUser, IssuerConfig
from remit_broker.starter import DEVELOPMENT, REAL, commented, starter, write_starter
from remit_schemas.budget import Budget


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "remit.toml"


def wrong(file: Path, text: str | bytes) -> tuple[str, str]:
    """What is said of a file, without its name, and what to do."""
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as no:
        load(str(file))
    assert str(file) in no.value.message
    assert no.value.ask
    return no.value.message.replace(str(file), "F"), no.value.ask


def test_an_empty_file_is_all_defaults(file: Path) -> None:
    file.write_text("")
    found = load(str(file))
    assert found.config == Config()
    assert (found.data, found.policies) == (file.parent / "data", file.parent / "policies")


def test_what_init_writes_is_the_defaults(tmp_path: Path) -> None:
    found = load(str(write_starter(tmp_path / "new", "local", 7480)))
    assert found.config == Config()


def test_the_starter_shows_every_key_with_its_default(file: Path) -> None:
    """Every commented line, uncommented, is what the default is; and no key is left out."""
    whole = starter("local", 7480)
    # Issuers have no default; their part is looked at below.
    lines = whole.replace(commented(REAL) + "\n" + DEVELOPMENT, "").splitlines()
    shown = [line.removeprefix("# ") if " = " in line and not line.startswith('# "') else line for line in lines]
    file.write_text("\n".join(shown))
    assert load(str(file)).config == Config()
    keys = {line.split(" = ")[0] for line in shown if " = " in line}
    parts: list[type[msgspec.Struct]] = [Config]
    parts += [type(value) for value in msgspec.structs.astuple(Config()) if isinstance(value, msgspec.Struct)]
    for part in parts:
        names = {field.name for field in msgspec.structs.fields(part)}
        assert names - keys <= {
            "bus",
            "http",
            "limits",
            "log",
            "results",
            "traces",
            "vault",
            "content",
            "prices",
            "models",
            "labels",
            "approvals",
            "backends",
            "endorsers",
            "mcp",
            "oauth",
            "policy",
            "tool_groups",
            "caps",
            "rates",
            "secrets",
            "tenants",
            "issuers",
            "development",
            "beside_real",
            "issuer",
            "users",
            "operators",
        }


def test_the_issuer_of_the_starter_shows_every_key_with_its_default(file: Path) -> None:
    """As above, for what is there once for each issuer."""
    shown = [line.removeprefix("# ") for line in (REAL + DEVELOPMENT).splitlines()]
    file.write_text("\n".join(line for line in shown if not line.startswith(("require = ", "login = "))))
    found = load(str(file)).config
    (issuer,) = found.issuers
    said = {"claims", "operators", "name", "issuer", "audience"}
    plain = IssuerConfig(name="", issuer="", audience=())
    names = [field.name for field in msgspec.structs.fields(IssuerConfig)]
    assert all(getattr(issuer, name) == getattr(plain, name) for name in names if name not in said)
    assert [
        name for name in names if not any(line.startswith((f"{name} = ", f"[issuers.{name}]")) for line in shown)
    ] == []
    assert found.development.users["ann"] == DevUser(roles=("analyst",), groups=("research",))
    assert not found.development.issuer and not found.development.beside_real


WIDE = """
[[endorsers]]
name = "x"
target = "agent/a/b"
lowers = ["web"]
schema = { type = "string" }
"""


@pytest.mark.parametrize(
    ("text", "said", "ask"),
    [
        ("nope = 1", "F: nope: there is no such key", "issuer, data, policies, bus"),
        ("[bus]\nsynk = 1", "F: bus.synk: there is no such key", "url, port, sync, replicas"),
        ("[bus.x]\ny = 1", "F: bus.x: there is no such key", "url, port, sync"),
        ("bus = 3", "F: bus: Expected table, got int", ""),
        ("issuer = 7", "F: issuer: Expected str, got int", ""),
        ('issuer = ""', "F: issuer is ''", "at least one character"),
        ('data = "a\\u0000b"', "F: data is 'a\\x00b'", "printable"),
        ("[bus]\nport = '1'", "F: bus.port: Expected int, got str", ""),
        ("[bus]\nport = -1", "F: bus.port: Expected int >= 0", ""),
        ("[bus]\nport = 65536", "F: bus.port: Expected int <= 65535", ""),
        ("[bus]\nport = true", "F: bus.port: Expected int, got bool", ""),
        ("[bus]\nsync = 'never'", "F: bus.sync: Invalid enum value 'never'", "'always', 'default'"),
        ("[bus]\nreplicas = 2", "F: bus.replicas: Invalid enum value 2", "1, 3, 5"),
        ("[bus]\nreplicas = 3", "F: bus.replicas is 3, but the embedded NATS server is one", "bus.url"),
        ("[bus]\nurl = 'example'", "F: bus.url is 'example'", "nats://HOST:PORT"),
        ("[bus]\nurl = 'nats://a:1,,nats://b:1'", "F: bus.url is 'nats://a:1,,nats://b:1'", "separated by commas"),
        ("[bus]\nurl = 'http://a:1'", "F: bus.url is 'http://a:1'", "nats://HOST:PORT"),
        ("[bus]\nurl = 'nats://a:99999'", "F: bus.url is 'nats://a:99999'", "nats://HOST:PORT"),
        ("[bus]\nledger_bytes = -1", "F: bus.ledger_bytes: Expected int >= 0", ""),
        ("[http]\nhost = '0.0.0.0'", "F: http.host is '0.0.0.0'", "127.0.0.1"),
        ("[http]\nauth = 'none'", "F: http.auth: Invalid enum value 'none'", "'local'"),
        ("[limits]\nhop_ttl = 28801", "F: limits.hop_ttl: Expected float <= 28800.0", ""),
        ("[limits]\nhop_ttl = 0", "F: limits.hop_ttl: Expected float > 0.0", ""),
        ("[limits]\nhop_ttl = nan", "F: limits.hop_ttl", ""),
        ("[limits]\ndrain = inf", "F: limits.drain is inf", "finite"),
        ("[limits]\norphan_grace = nan", "F: limits.orphan_grace", ""),
        ("[limits]\ncalls_per_second = 1e-320", "F: limits.calls_per_second: Expected float >= 0.001", ""),
        ("[limits]\nburst = 0", "F: limits.burst: Expected int >= 1", ""),
        ("[limits]\nburst = 1.5", "F: limits.burst: Expected int, got float", ""),
        ("[limits]\nconcurrency = 99999999999999999999", "F: limits.concurrency", ""),
        ("[limits]\nallow_cycles = ['a']", "F: limits.allow_cycles: 'a' is no pair", "caller>callee"),
        ("[limits]\nallow_cycles = ['a>B c']", "F: limits.allow_cycles: 'a>B c' is no pair", "caller>callee"),
        ("[traces]\nendpoint = 'localhost:4318'", "F: traces.endpoint is 'localhost:4318'", "http://HOST:PORT"),
        ("[prices]\n'mcp/*' = 1", "F: prices.*: Expected str, got int", ""),
        ("[prices]\n'mcp/*' = 'usd=x'", "F: prices.'mcp/*': 'usd=x' is not a budget", "usd=0.5"),
        ("[prices]\n'mpc/*' = 'calls=1'", "F: prices.'mpc/*' matches no resource", "mcp/git/*"),
        ("[labels]\n'' = ['x']", "F: labels.'': matches no resource", "mcp/git/*"),
        ("[labels]\n'mcp/*#a b' = ['x']", "F: labels.'mcp/*#a b': 'a b' names no argument", "#body"),
        ("[labels]\n'mcp/*' = ['{id}']", "F: labels.'mcp/*': '{id}' has no family before its value", "customer:{"),
        ("[content.labels]\nnames = ['x']", "F: content.labels.'names': nothing detects that", "pii"),
        ("[[endorsers]]\nname = 'x'", "F: endorsers[0]: it needs a target", "docs/labels.md"),
        (WIDE, "F: endorsers[0]: schema is a text: list its choices in an enum", "docs/labels.md"),
        ("[labels]\n'mcp/*' = 'x'", "F: labels.*: Expected array, got str", ""),
        ("[labels]\n'mcp/*' = ['No Label']", "F: labels.'mcp/*': 'No Label' is no label", "lower-case"),
        ("a = 1\na = 2", "F is not TOML: Cannot overwrite a value", ""),
        ("a = [", "F is not TOML: Invalid value", ""),
        ("a = " + "[" * 100_000, "F is not TOML", ""),
        ("a = " + "9" * 10_000, "F is not TOML", ""),
        (b"\xff\xfe", "F is not UTF-8 text", ""),
        (b"#" * 1_100_000, "F has more than 1048576 bytes", ""),
    ],
)
def test_what_is_wrong_is_named_with_its_key_and_what_is_allowed(
    file: Path, text: str | bytes, said: str, ask: str
) -> None:
    message, told = wrong(file, text)
    assert message.startswith(said)
    assert ask in told


@given(st.text(max_size=200))
def test_no_text_breaks_the_reader(text: str) -> None:
    import tomllib

    try:
        raw = tomllib.loads(text)
    except ValueError:
        return
    try:
        settings(Path("/nowhere/remit.toml"), raw)
    except ConfigError as no:
        assert no.message.startswith("/nowhere/remit.toml: ")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    ),
    st.sampled_from([field.name for field in msgspec.structs.fields(Config)]),
)
def test_no_value_breaks_the_reader(value: object, key: str) -> None:
    try:
        settings(Path("/nowhere/remit.toml"), {key: value})
    except ConfigError as no:
        assert no.message.startswith("/nowhere/remit.toml: ")


def test_a_folder_stands_for_the_file_in_it(file: Path) -> None:
    file.write_text("")
    assert find(str(file.parent)) == find(str(file)) == file


def test_without_a_name_the_working_folder_comes_before_the_users_own(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(file.parent / "home"))
    monkeypatch.chdir(file.parent)
    assert find(None) == file.parent / "home" / "remit" / "remit.toml"
    file.write_text("")
    assert find(None) == file


def test_no_configuration_anywhere_names_both_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as no:
        load()
    assert "./remit.toml" in no.value.message
    assert str(tmp_path / "home" / "remit" / "remit.toml") in no.value.message
    assert "remit init" in no.value.ask


@pytest.mark.parametrize("name", ["missing/remit.toml", "remit.toml/x", "a\x00b"])
def test_a_file_that_cannot_be_read_is_named(file: Path, name: str) -> None:
    file.write_text("")
    with pytest.raises(ConfigError):
        load(str(file.parent / name))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_named(file: Path) -> None:
    file.write_text("")
    file.chmod(0)
    with pytest.raises(ConfigError, match="Permission denied"):
        load(str(file))


def test_prices_and_cycles_are_ready_to_use(file: Path) -> None:
    file.write_text("[limits]\nallow_cycles = ['a > b']\n[prices]\n'mcp/*' = 'usd=0.5,calls=2'\n")
    found = load(str(file))
    assert found.cycles == {("a", "b")}
    assert found.prices == {"mcp/*": Budget(500_000, 0, 2)}


@pytest.mark.parametrize("text", ["", ">", "a>", ">b", "a>b>c", "A>b", "a<b", "broker>a"])
def test_what_is_no_pair_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        cycle(text)


@pytest.mark.parametrize(
    "text",
    [
        "[http]\nauth = 'open'\nhost = '0.0.0.0'",
        "[http]\nauth = 'open'\nhosts = ['remit.example.com']",
        "[http]\nauth = 'local'\nhost = '10.0.0.1'",
        "[http]\nauth = 'issuer'\nhost = '0.0.0.0'\n[development]\nissuer = true",
        "[http]\nauth = 'issuer'\nhosts = ['remit.example.com']\n[development]\nissuer = true",
    ],
)
def test_what_trusts_the_machine_needs_loopback(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match="loopback only"):
        load(str(file))


@pytest.mark.parametrize(
    "text",
    [
        "[http]\nstop_all = ['corp:ann']",
        "[http]\nauth = 'issuer'\nstop_all = ['corp:ann']\n[development]\nissuer = true",
        "[http]\nauth = 'issuer'\nstop_all = ['development:']\n[development]\nissuer = true",
        "[http]\nauth = 'issuer'\nstop_all = ['ann']\n[development]\nissuer = true",
    ],
)
def test_whoever_may_stop_all_tenants_is_somebody_an_issuer_proves(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match="stop_all"):
        load(str(file))


def test_operators_by_an_issuer_need_one(file: Path) -> None:
    file.write_text("[http]\nauth = 'issuer'")
    with pytest.raises(ConfigError, match="there is no issuer"):
        load(str(file))
