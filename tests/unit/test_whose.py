"""Which tenant a command is about when it names none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from remit_broker.cli import client
from remit_broker.cli.client import whose
from remit_broker.config import load

ISSUER = """
[http]
auth = "issuer"
[[issuers]]
name = "corp"
issuer = "https://login.example.com"
audience = ["remit"]
"""


class Broker:
    """What a running broker says of whose token it got."""

    def __init__(self, *_: Any) -> None:
        pass

    def get(self, path: str) -> dict[str, str]:
        assert path == "/api/status"
        return {"tenant": "acme"}


@pytest.mark.parametrize(
    ("config", "named", "tenant"),
    [
        ("", None, "default"),
        ("[tenants.acme]\n", None, "default"),
        (ISSUER, None, "default"),
        (ISSUER + "[tenants.acme]\n", None, "acme"),
        (ISSUER + "[tenants.acme]\n", "default", "default"),
        ("[tenants.acme]\n", "acme", "acme"),
    ],
)
def test_without_a_name_a_command_is_about_the_tenant_of_the_token(
    config: str, named: str | None, tenant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "BrokerClient", Broker)
    (tmp_path / "remit.toml").write_text(config)
    assert whose(load(str(tmp_path)), named) == tenant
