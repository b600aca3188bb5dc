"""Clients of logins, and the provider behind them: what a document of either may not bring about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from remit_broker.adapters.identities import Issuers
from remit_broker.adapters.limits import Unlimited
from remit_broker.adapters.provider import Provider
from remit_broker.core.issuers import LoginConfig
from remit_broker.core.login import may_redirect, same_redirect
from remit_broker.core.oauth import OAuthError
from remit_broker.edges.http.oauth.registration import Registration
from remit_schemas.errors import Refusal
from tests.support.issuers import Clock, Issuer, serving

URL = "https://editor.example/client.json"


def registry(documents: dict[str, Any], allowed: tuple[str, ...] = ("https://editor.example/*",)) -> Registration:
    async def fetch(url: str) -> bytes:
        return json.dumps(documents[url]).encode()

    return Registration(None, fetch, Clock(), Unlimited(), opened=True, redirects=(), documents=allowed)  # type: ignore[arg-type]


async def test_a_client_may_be_a_document(tmp_path: Path) -> None:
    back = ["https://editor.example/back", "http://127.0.0.1/back"]
    found = await registry({URL: {"client_id": URL, "client_name": "Editor", "redirect_uris": back}}).known(URL)
    assert (found.id, found.name, found.redirects) == (URL, "Editor", tuple(back))


@pytest.mark.parametrize(
    "change",
    [
        {"client_id": "https://editor.example/other.json"}, {"client_id": None}, {"redirect_uris": ["https://evil.example/back"]},
        {"redirect_uris": []}, {"client_secret": "x"}, {"token_endpoint_auth_method": "private_key_jwt"},
    ],
)  # fmt: skip
async def test_a_document_of_another_client_is_none(change: dict[str, Any]) -> None:
    document = {"client_id": URL, "redirect_uris": ["https://editor.example/back"], **change}
    with pytest.raises(OAuthError):
        await registry({URL: document}).known(URL)


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/client.json", "https://editor.example", "https://editor.example/", "http://editor.example/client.json",
        "https://editor.example/client.json?x", "https://editor.example/client.json#x", "https://a@editor.example/client.json",
        "https://editor.example/../client.json", "https://editor.example/%2e%2e/c", "https://editor.example.evil/client.json",
    ],
)  # fmt: skip
async def test_only_documents_that_are_named_are_fetched(url: str) -> None:
    asked: list[str] = []

    async def fetch(url: str) -> bytes:
        asked.append(url)
        return b"{}"

    clients = Registration(
        None, fetch, Clock(), Unlimited(), opened=True, redirects=(), documents=("https://editor.example/*",)  # type: ignore[arg-type]
    )  # fmt: skip
    clients._store = _Empty()  # type: ignore[assignment]
    with pytest.raises(OAuthError):
        await clients.known(url)
    assert asked == []


class _Empty:
    async def get(self, *_: Any) -> None:
        return None


@pytest.mark.parametrize("name", ["authorization_endpoint", "token_endpoint"])
@pytest.mark.parametrize(
    "value",
    [
        "javascript:alert(1)", "http://evil.example/auth", "file:///bin/sh", "https://a.example/$(reboot)\" x", "https://a.example/a b",
        "https://a.example/\r\nSet-Cookie: x", "", None, 5, "//evil.example", "a:$(curl evil)",
    ],
)  # fmt: skip
async def test_a_hostile_discovery_document_sends_nobody_anywhere(name: str, value: Any, tmp_path: Path) -> None:
    """What a browser or a shell would make of it is never tried."""
    with serving(Issuer()) as issuer:
        about = {
            "issuer": issuer.url, "jwks_uri": f"{issuer.url}/jwks", "authorization_endpoint": f"{issuer.url}/a",
            "token_endpoint": f"{issuer.url}/t", name: value,
        }  # fmt: skip
        issuer.documents["/.well-known/openid-configuration"] = about
        table = issuer.config(login=LoginConfig(client_id="remit"))
        provider = Provider(table, table.login or LoginConfig(client_id="x"), Issuers([table], Clock()), tmp_path)
        with pytest.raises(Refusal) as caught:
            await provider.authorize("http://127.0.0.1/oauth/callback", "s", "n", "c")
        assert caught.value.body.rule == "identity.unavailable"


@pytest.mark.parametrize(
    ("pattern", "uri", "good"),
    [
        ("https://a.example/*", "https://a.example/x", True),
        ("https://a*", "https://a.evil/x", False),
        ("https://*", "https://evil.example/x", False),
        ("*", "https://evil.example/x", False),
        ("https://a.example/*", "https://a.example@evil.example/", False),
        ("javascript:*", "javascript:alert(1)", False),
        ("app:*", "app:/back", True),
        ("app://x/*", "app://y/z", False),
    ],
)
def test_a_pattern_of_redirections_widens_to_no_other_host(pattern: str, uri: str, good: bool) -> None:
    assert may_redirect(uri, [pattern]) is good


def test_only_the_port_of_this_machine_may_differ() -> None:
    assert same_redirect("http://127.0.0.1:50000/back", "http://127.0.0.1/back")
    for other in (
        "http://127.0.0.1:50000/back/",
        "http://localhost:50000/back",
        "https://127.0.0.1/back",
        "http://127.0.0.1:1/back?x",
    ):
        assert not same_redirect(other, "http://127.0.0.1/back")
    assert not same_redirect("https://a.example:444/b", "https://a.example/b")
