"""Key files: drawn once, whole or not at all, and read only where nobody else could have read them."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from remit_broker.adapters import keyfiles, private_files
from remit_broker.adapters.errors import ConfigError
from remit_broker.adapters.keyfiles import KeyFiles
from remit_broker.core import nkey
from remit_schemas.keys import KeySet

EVERY_FILE = ["digest.key", "results.key", "local.token", *(f"nats-{name}.nk" for name in keyfiles.NATS_SEEDS)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    KeyFiles.open(tmp_path / "data", create=True)
    return tmp_path / "data"


def grant_file(data: Path) -> Path:
    return next((data / "keys").glob("grant-*.jwk"))


def test_files_and_folders_are_private(data: Path) -> None:
    assert {stat.S_IMODE(path.stat().st_mode) for path in (data, data / "keys")} == {0o700}
    files = list((data / "keys").iterdir())
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert len(files) == len(EVERY_FILE) + 2
    assert [path for path in data.iterdir() if path.name != "keys"] == []


def test_opening_again_reads_the_same_keys(data: Path) -> None:
    first, second = KeyFiles.open(data), KeyFiles.open(data, create=True)
    assert first.jwks() == second.jwks()
    assert (first.digest_key, first.local_token) == (second.digest_key, second.local_token)
    assert [first.seed(name) for name in keyfiles.NATS_SEEDS] == [second.seed(name) for name in keyfiles.NATS_SEEDS]


def test_every_key_is_another_one(data: Path, tmp_path: Path) -> None:
    one, other = KeyFiles.open(data), KeyFiles.open(tmp_path / "other", create=True)
    drawn = [
        secret
        for keys in (one, other)
        for secret in (keys.digest_key, keys.results_key, keys.local_token, keys.signing.kid, keys.sealing.kid)
    ]
    drawn += [keys.seed(name) for keys in (one, other) for name in keyfiles.NATS_SEEDS]
    assert len(set(drawn)) == len(drawn)
    assert len(one.digest_key) == 32


def test_the_published_set_is_public_and_loads(data: Path) -> None:
    keys = KeyFiles.open(data)
    published = json.dumps(keys.jwks())
    found = KeySet.from_jwks(published.encode()).get(keys.signing.kid)
    assert found is not None
    assert found.verify(b"x", keys.signing.sign(b"x"))
    assert '"d"' not in published


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602, 0o620])
@pytest.mark.parametrize("name", ["digest.key", "nats-issuer.nk", "local.token"])
def test_a_key_file_others_can_read_is_refused(data: Path, name: str, mode: int) -> None:
    path = data / "keys" / name
    path.chmod(mode)
    with pytest.raises(ConfigError) as told:
        KeyFiles.open(data)
    assert str(path) in told.value.message
    assert f"chmod 600 {path}" in told.value.ask


def test_a_signing_key_others_can_read_is_refused(data: Path) -> None:
    grant_file(data).chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        KeyFiles.open(data)


@pytest.mark.parametrize("folder", [".", "keys"])
def test_a_folder_others_can_enter_is_refused(data: Path, folder: str) -> None:
    (data / folder).chmod(0o750)
    for create in (False, True):
        with pytest.raises(ConfigError, match="chmod 700"):
            KeyFiles.open(data, create=create)


@pytest.mark.parametrize("name", EVERY_FILE)
def test_a_missing_key_is_never_replaced_in_silence(data: Path, name: str) -> None:
    (data / "keys" / name).unlink()
    for create in (False, True):
        with pytest.raises(ConfigError, match=f"{name} is missing.*backup"):
            KeyFiles.open(data, create=create)
    assert not (data / "keys" / name).exists()


def test_a_missing_signing_key_is_never_replaced_in_silence(data: Path) -> None:
    grant_file(data).unlink()
    with pytest.raises(ConfigError, match="no grant key"):
        KeyFiles.open(data, create=True)


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 43, b"A" * 44, b"A" * 100_000])
@pytest.mark.parametrize("name", EVERY_FILE)
def test_a_damaged_key_is_refused_without_showing_it(data: Path, name: str, content: bytes) -> None:
    (data / "keys" / name).write_bytes(content)
    with pytest.raises(ConfigError) as told:
        KeyFiles.open(data)
    assert str(data / "keys" / name) in told.value.message
    assert "AAAA" not in str(told.value)


def test_a_seed_of_another_kind_is_refused(data: Path) -> None:
    (data / "keys" / "nats-issuer.nk").write_text(KeyFiles.open(data).seed("core"))
    with pytest.raises(ConfigError, match=r"nats-issuer\.nk is damaged: not the seed of a A key"):
        KeyFiles.open(data)


@pytest.mark.parametrize(
    "change", [{"kid": "A" * 43}, {"x": "A" * 43}, {"d": "A" * 43}, {"d": 7}, {"created": "now"}, {"retired": "x"}]
)
def test_a_signing_key_whose_parts_do_not_belong_together_is_refused(data: Path, change: dict[str, object]) -> None:
    path = grant_file(data)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ConfigError, match="damaged"):
        KeyFiles.open(data)


def test_a_signing_key_under_another_name_is_refused(data: Path) -> None:
    grant_file(data).rename(data / "keys" / f"grant-{'A' * 43}.jwk")
    with pytest.raises(ConfigError, match="damaged"):
        KeyFiles.open(data)


def test_a_link_in_the_place_of_a_key_is_not_followed(data: Path, tmp_path: Path) -> None:
    path = data / "keys" / "digest.key"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="not a link"):
        KeyFiles.open(data)


def test_an_interrupted_first_start_leaves_no_keys_and_the_next_one_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, calls = private_files.write_private, 0

    def failing(path: Path, content: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise OSError("no space left")
        whole(path, content)

    monkeypatch.setattr(keyfiles, "write_private", failing)
    with pytest.raises(OSError, match="no space"):
        KeyFiles.open(tmp_path / "data", create=True)
    assert list((tmp_path / "data").iterdir()) == []
    KeyFiles.open(tmp_path / "data", create=True)


def test_the_loser_of_two_first_starts_uses_the_winners_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, winner = keyfiles._draw_all, list[KeyFiles]()

    def late(data: Path) -> None:
        draw(data)
        winner.append(KeyFiles.open(data))
        draw(data)

    monkeypatch.setattr(keyfiles, "_draw_all", late)
    found = KeyFiles.open(tmp_path / "data", create=True)
    assert found.jwks() == winner[0].jwks()
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["keys"]


def test_a_rotated_key_signs_no_more_and_still_verifies(data: Path) -> None:
    before = KeyFiles.open(data)
    after = before.rotate(now=2_000_000_000)
    assert after.signing.kid != before.signing.kid
    found = KeySet.from_jwks(after.jwks())
    assert found.get(before.signing.kid) is not None
    assert {key["kid"]: key.get("retired") for key in after.jwks()["keys"]} == {
        before.signing.kid: 2_000_000_000,
        after.signing.kid: None,
        before.sealing.kid: 2_000_000_000,
        after.sealing.kid: None,
    }
    assert KeyFiles.open(data).signing.kid == after.signing.kid


def test_a_folder_that_does_not_exist_is_not_made_by_reading(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not exist.*remit init"):
        KeyFiles.open(tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_an_interrupted_write_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private_files.write_private(tmp_path / "f", b"old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("io")))
    with pytest.raises(OSError, match="io"):
        private_files.write_private(tmp_path / "f", b"new")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_secrets_show_in_no_repr(data: Path) -> None:
    keys = KeyFiles.open(data)
    assert keys.local_token not in repr(keys)
    assert keys.seed("issuer") not in repr(keys)


def test_a_new_agents_seed_is_a_user_seed() -> None:
    assert nkey.public_of("U", keyfiles.new_user_seed()).startswith("U")
