"""A real OpenID provider (npm's ``oidc-provider``), started for tests, and a browser's way through its login.

It is installed once into a cache outside the checkout, in the version that the lock beside it pins.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

HERE = Path(__file__).parent / "openid_provider"
SECONDS = 60.0
RESOURCE = "https://remit.example"


def installed() -> Path:
    """The folder with the provider and its dependencies. Skips, with the reason, where Node or the registry is not there."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("there is no node or npm on this machine: the OpenID provider is an npm package")
    files = ("package.json", "package-lock.json")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    name = hashlib.sha256(b"".join((HERE / file).read_bytes() for file in files) + version.encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "remit-tests" / f"openid-{name}"
    if not (cache / "done").exists():
        fresh = cache.with_name(f"{cache.name}-{os.getpid()}")
        fresh.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copy(HERE / file, fresh)
        done = subprocess.run(
            [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            cwd=fresh,
            capture_output=True,
            text=True,
            timeout=300,
        )
        if done.returncode != 0:
            shutil.rmtree(fresh, ignore_errors=True)
            pytest.skip(f"npm ci failed: {done.stderr.strip()[-300:]}")
        (fresh / "done").touch()
        try:
            fresh.rename(cache)
        except OSError:  # another run was first
            shutil.rmtree(fresh, ignore_errors=True)
    return cache


class OpenIdProvider:
    """The process, its keys, and its users as they log in."""

    def __init__(self, modules: Path, folder: Path) -> None:
        self._modules, self._keys = modules, folder / "jwks.json"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[str] | None = None
        self._script = modules / f"provider-{os.getpid()}.mjs"

    def start(self) -> None:
        """Start it, with keys of its own if it has none yet."""
        if not self._keys.exists():
            self.draw_keys("first")
        # Beside its modules, since Node looks for those from where a script is.
        shutil.copy(HERE / "provider.mjs", self._script)
        self._process = subprocess.Popen(
            ["node", str(self._script), str(self._port), str(self._keys)],
            stdout=subprocess.PIPE,
            stderr=sys.stderr,
            text=True,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip() == "ready":
                return
        raise AssertionError("the provider ended before it was ready")

    def stop(self) -> None:
        """End it: an outage."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None
        self._script.unlink(missing_ok=True)

    def draw_keys(self, kid: str) -> None:
        """New keys, for when it looks next."""
        keys = [
            {**jwt.algorithms.RSAAlgorithm.to_jwk(rsa.generate_private_key(public_exponent=65537, key_size=2048), as_dict=True),
             "kid": f"{kid}-rsa", "use": "sig", "alg": "RS256"},
            {**jwt.algorithms.ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()), as_dict=True),
             "kid": f"{kid}-ec", "use": "sig", "alg": "ES256"},
        ]  # fmt: skip
        for key in keys:
            key.pop("key_ops", None)
        self._keys.write_text(json.dumps({"keys": keys}))

    def rotate(self, kid: str) -> None:
        """Sign with new keys from now on, publish no others, and go on running."""
        self.draw_keys(kid)
        httpx.post(f"{self.url}/__keys", trust_env=False).raise_for_status()

    def login(self, user: str, client: str = "portal", resource: str | None = None) -> dict[str, Any]:
        """Authorization code with PKCE, as a browser and an application do it; the answer of the token endpoint."""
        verifier = secrets.token_urlsafe(48)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        about = httpx.get(f"{self.url}/.well-known/openid-configuration", trust_env=False).json()
        wish = {
            "client_id": client, "response_type": "code", "redirect_uri": "http://127.0.0.1/back", "scope": "openid tasks",
            "code_challenge": challenge, "code_challenge_method": "S256", "nonce": secrets.token_hex(8),
            **({"resource": resource} if resource else {}),
        }  # fmt: skip
        with httpx.Client(trust_env=False, timeout=SECONDS) as browser:
            code = self._through(browser, browser.get(about["authorization_endpoint"], params=wish), user)
            answer = browser.post(
                about["token_endpoint"],
                data={
                    "grant_type": "authorization_code", "code": code, "client_id": client, "code_verifier": verifier,
                    "redirect_uri": "http://127.0.0.1/back", **({"resource": resource} if resource else {}),
                },
            )  # fmt: skip
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def _through(self, browser: httpx.Client, page: httpx.Response, user: str) -> str:
        """Follow redirections and answer its forms until it sends the browser back with a code."""
        for _ in range(20):
            if page.is_redirect:
                to = urljoin(str(page.url), page.headers["location"])
                if to.startswith("http://127.0.0.1/back"):
                    return parse_qs(urlsplit(to).query)["code"][0]
                page = browser.get(to)
                continue
            assert page.status_code == 200, page.text
            form = re.search(r'<form[^>]*action="([^"]+)"', page.text)
            prompt = re.search(r'name="prompt" value="([^"]+)"', page.text)
            assert form and prompt, page.text
            fields = {"prompt": prompt[1], **({"login": user, "password": "any"} if prompt[1] == "login" else {})}
            page = browser.post(urljoin(str(page.url), form[1]), data=fields)
        raise AssertionError("the login never ended")


@contextmanager
def openid_provider(folder: Path) -> Iterator[OpenIdProvider]:
    """A running provider."""
    provider = OpenIdProvider(installed(), folder)
    provider.start()
    try:
        yield provider
    finally:
        provider.stop()
