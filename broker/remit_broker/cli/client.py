"""The command line's way to a running broker on this machine: found through its configuration, proved by its token file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from remit_broker.adapters.errors import ConfigError
from remit_broker.cli.common import Unreachable
from remit_broker.config import Settings
from remit_broker.core.user_tokens import MAX_TOKEN
from remit_schemas.errors import ErrorBody, Refusal
from remit_schemas.names import DEFAULT_TENANT

TOKEN_FILE = "REMIT_TOKEN_FILE"  # noqa: S105 - the name of a variable
"""The variable that names the file with an operator's token, where operators are known by an issuer."""
SECONDS = 30.0
"""Longest wait for an answer of the broker."""


class BrokerClient:
    """``/api`` of the broker that runs on ``settings``. Raises :class:`Unreachable` or a :class:`Refusal`."""

    def __init__(self, settings: Settings, tenant: str | None = None) -> None:
        """Everything that is asked is about ``tenant``; None: the one that :func:`whose` says."""
        import httpx

        self._settings = settings
        about = self._about()
        self.http: str = about.http
        self.bus: str = about.nats
        whose = {"tenant": tenant} if tenant else None
        self._client = httpx.Client(base_url=self.http, params=whose, timeout=SECONDS, trust_env=False)
        self._no_answer = httpx.TransportError

    def _about(self) -> _About:
        """What the running broker says of itself; a file left behind by one that was killed names a dead process."""
        try:
            about = msgspec.json.decode(self._read("run/broker.json"), type=_About)
        except ValueError:
            raise self._gone(f"{self._settings.runtime_file} is damaged") from None
        # INVARIANT: the token goes to the broker only, not to whoever has its port now
        # (test_a_broker_that_was_killed_is_not_asked).
        if not _lives(about.pid):
            raise self._gone(f"the broker on {self._settings.file} (process {about.pid}) has ended")
        return about

    def _read(self, name: str) -> str:
        path = self._settings.data / name
        try:
            return path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            raise self._gone(f"no broker runs on {self._settings.file}") from None
        except PermissionError:
            raise ConfigError(f"{path} cannot be read", "run this as the user that runs the broker") from None

    def token(self) -> str:
        """What proves who asks: the file in the data folder, or an issuer's token from the file that $REMIT_TOKEN_FILE names."""
        if self._settings.config.http.auth != "issuer":
            return self._read("keys/local.token").strip()
        if not (file := os.environ.get(TOKEN_FILE, "")):
            raise ConfigError(
                "this broker knows its operators by an issuer's token (http.auth), and none was given",
                f"put an access token into a file and name it: export {TOKEN_FILE}=FILE",
            )
        try:
            token = Path(file).read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{TOKEN_FILE}={file} cannot be read: {type(error).__name__}", "name another file"
            ) from None
        if not token.isprintable() or not token or len(token) > MAX_TOKEN:
            raise ConfigError(f"{TOKEN_FILE}={file} holds no token", "write the access token into it, nothing else")
        return token

    def _gone(self, message: str) -> Unreachable:
        return Unreachable(message, f"start it with: remit up -c {self._settings.file}")

    def get(self, path: str, **params: Any) -> Any:
        """A GET; parameters that are None are left out."""
        return self._call("GET", path, params={key: value for key, value in params.items() if value is not None})

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """A POST of a JSON object."""
        return self._call("POST", path, json=body or {})

    def delete(self, path: str) -> Any:
        """A DELETE."""
        return self._call("DELETE", path)

    def form(self, path: str, fields: dict[str, str]) -> Any:
        """A POST of a form, to what knows its callers by what is in it."""
        return self._ask("POST", path, data=fields)

    def lives(self) -> None:
        """Raises :class:`Unreachable` where nothing answers; who asks need not be known for that."""
        self._ask("GET", "/healthz")

    def _call(self, method: str, path: str, **rest: Any) -> Any:
        return self._ask(method, path, headers={"Authorization": f"Bearer {self.token()}"}, **rest)

    def _ask(self, method: str, path: str, **rest: Any) -> Any:
        try:
            response = self._client.request(method, path, **rest)
        except self._no_answer as error:
            raise self._gone(f"the broker at {self.http} does not answer: {type(error).__name__}") from None
        try:
            value = response.json()
            if response.is_success:
                return value
            body = msgspec.convert(value["error"], ErrorBody)
        except (ValueError, KeyError, TypeError):
            raise self._gone(f"what answers at {self.http} is not this broker") from None
        raise Refusal(body)


def whose(settings: Settings, tenant: str | None) -> str:
    """The tenant that a command is about: the named one, else the default one, or the one that the caller's token is of.

    INVARIANT: files that a command writes are those of the tenant that the broker does it for
    (test_without_a_name_a_command_is_about_the_tenant_of_the_token). Raises :class:`Unreachable` where the broker has to be asked.
    """
    if tenant is not None:
        return tenant
    if settings.config.http.auth != "issuer" or len(settings.tenants) == 1:
        return DEFAULT_TENANT
    return str(BrokerClient(settings).get("/api/status")["tenant"])


class _About(msgspec.Struct, frozen=True):
    """What the command line needs of ``run/broker.json``."""

    http: str
    nats: str
    pid: int


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return pid > 0
