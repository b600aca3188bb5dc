"""The command line's way to a running broker on this machine: found through its configuration, proved by its token file."""

from __future__ import annotations

import json
from typing import Any

import httpx
import msgspec

from remit_broker.adapters.errors import ConfigError
from remit_broker.cli.common import Unreachable
from remit_broker.config import Settings
from remit_schemas.errors import ErrorBody, Refusal

START = "start it with: remit up"


class BrokerClient:
    """``/api`` of the broker that runs on ``settings``. Raises :class:`Unreachable` or a :class:`Refusal`."""

    def __init__(self, settings: Settings) -> None:
        try:
            about = json.loads(settings.runtime_file.read_text(encoding="utf-8"))
            token = (settings.data / "keys" / "local.token").read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            raise Unreachable(f"no broker runs on {settings.file}", START) from None
        except PermissionError as error:
            raise ConfigError(f"{error.filename} cannot be read", "run this as the user that runs the broker") from None
        self.http: str = about["http"]
        self.bus: str = about["nats"]
        self._client = httpx.Client(
            base_url=self.http, headers={"Authorization": f"Bearer {token}"}, timeout=30, trust_env=False
        )

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
        except httpx.TransportError as error:
            raise Unreachable(f"the broker at {self.http} does not answer: {type(error).__name__}", START) from None
        value = response.json()
        if response.is_success:
            return value
        raise Refusal(msgspec.convert(value["error"], ErrorBody))
