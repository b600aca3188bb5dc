"""The credentials file: private, whole, and of the agent that uses it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from remit.credentials import CredentialsError, find_credentials, read_credentials
from tests.support.sdk_broker import ISSUER, KEYS, new_user_seed

SEED = new_user_seed()
GOOD: dict[str, Any] = {
    "agent": "cli", "kind": "agent", "nkey_seed": SEED, "bus": "nats://127.0.0.1:4222", "issuer": ISSUER, "jwks": KEYS.to_jwks(),
}  # fmt: skip


def write(path: Path, content: Any, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    path.chmod(mode)
    return path


def test_a_good_file_is_read_and_hides_its_seed(tmp_path: Path) -> None:
    found = read_credentials(write(tmp_path / "c.json", GOOD), "cli")
    assert (found.agent, found.issuer) == ("cli", ISSUER) and found.keys is not None
    assert SEED not in repr(found)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_credentials_that_others_can_read_are_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(CredentialsError, match="chmod 600"):
        read_credentials(write(tmp_path / "c.json", GOOD, mode), "cli")


def test_a_link_or_a_folder_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "real.json", GOOD)
    os.symlink(tmp_path / "real.json", tmp_path / "link.json")
    with pytest.raises(CredentialsError, match="not a link"):
        read_credentials(tmp_path / "link.json", "cli")
    with pytest.raises(CredentialsError, match="plain file"):
        read_credentials(tmp_path, "cli")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "JSON"),
        ("[]", "not a credentials file"),
        ({**GOOD, "agent": "other"}, "for the agent other"),
        ({**GOOD, "kind": "mcp"}, "for the mcp cli"),
        ({**GOOD, "nkey_seed": "SUnonsense"}, "no nkey seed"),
        ({**GOOD, "nkey_seed": ""}, "no nkey seed"),
        ({**GOOD, "bus": ""}, "must be set"),
        ({**GOOD, "jwks": None}, "both issuer and jwks"),
        ({**GOOD, "issuer": None}, "both issuer and jwks"),
        ({**GOOD, "jwks": {"keys": [{"kty": "RSA"}]}}, "not a credentials file"),
    ],
)
def test_a_wrong_file_is_refused_on_one_line_without_its_seed(tmp_path: Path, content: Any, why: str) -> None:
    path = write(tmp_path / "c.json", content)
    with pytest.raises(CredentialsError, match=why) as no:
        read_credentials(path, "cli")
    assert str(path) in str(no.value) and SEED not in str(no.value) and "\n" not in str(no.value)


def test_the_file_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REMIT_CREDENTIALS", raising=False)
    with pytest.raises(CredentialsError, match=r"\.remit/credentials/cli\.json.*remit agents add cli"):
        find_credentials("cli")
    data = write(tmp_path / "data/credentials/cli.json", GOOD)
    assert find_credentials("cli").resolve() == data
    hidden = write(tmp_path / ".remit/credentials/cli.json", GOOD)
    assert find_credentials("cli").resolve() == hidden
    monkeypatch.setenv("REMIT_CREDENTIALS", str(data))
    assert find_credentials("cli") == data
    monkeypatch.setenv("REMIT_CREDENTIALS", str(data.parent))
    assert find_credentials("planner") == data.parent / "planner.json"
    assert find_credentials("cli", hidden) == hidden
