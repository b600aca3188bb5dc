"""The command line's way to a running broker on this machine: found through its configuration, proved by its token file."""

from __future__ import annotations

import os
from typing import Any

import msgspec

from remit_broker.adapters.errors import ConfigError
from remit_broker.cli.common import Unreachable
from remit_broker.config import Settings
from remit_schemas.errors import ErrorBody, Refusal

SECONDS = 30.0
"""Longest wait for an answer of the broker."""


class BrokerClient:
    """``/api`` of the broker that runs on ``settings``. Raises :class:`Unreachable` or a :class:`Refusal`."""

    def __init__(self, settings: Settings, tenant: str | None = None) -> None:
        """Everything that is asked is about ``tenant``; None: the default one."""
        import httpx

        self._settings = settings
        about = self._about()
        self.http: str = about.http
        self.bus: str = about.nats
        self._client = httpx.Client(
            base_url=self.http,
            headers={"Authorization": f"Bearer {self._read('keys/local.token').strip()}"},
            params={"tenant": tenant} if tenant else None,
            timeout=SECONDS,
            trust_env=False,
        )
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

    def _call(self, method: str, path: str, **rest: Any) -> Any:
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
