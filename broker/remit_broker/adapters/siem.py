"""Where records are pushed: an HTTP collector or a syslog server. One batch is taken as a whole, or it is not taken.

At least once: whoever calls remembers a place only after :meth:`send` has returned. What was sent and not acknowledged goes again.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import httpx

from remit_broker.adapters.errors import ConfigError

SECONDS: Final = 30.0
"""For one attempt."""
PAUSES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 60.0)
"""Seconds between two attempts; the last one is kept to."""
_LOCAL: Final = ("127.0.0.1", "::1", "localhost")
_FACILITY: Final = 13
"""Log audit (RFC 5424, section 6.2.1)."""
_NOTICE, _WARNING = 5, 4

Line = tuple[str, dict[str, Any]]
"""What is sent of a record, and the record."""


class Refused(Exception):  # noqa: N818 - an answer
    """The receiver says no, and will say so again."""


class Away(Exception):  # noqa: N818 - an answer
    """The receiver cannot be reached or is busy. ``wait`` is what it asks for, in seconds."""

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


class Receiver(Protocol):
    """Takes batches."""

    def send(self, lines: Sequence[Line]) -> None:
        """Raises :class:`Away` or :class:`Refused`; when it returns, the receiver has them."""

    def close(self) -> None:
        """Let go."""


class HttpReceiver:
    """A POST of JSON lines for each batch. Any answer of 2xx is a yes; redirects are not followed."""

    def __init__(self, url: str, headers: dict[str, str], transport: httpx.BaseTransport | None = None) -> None:
        self._url = url
        self._client = httpx.Client(headers=headers, timeout=SECONDS, trust_env=False, transport=transport)

    def send(self, lines: Sequence[Line]) -> None:
        """See :class:`Receiver`."""
        body = "".join(line for line, _ in lines).encode()
        try:
            answer = self._client.post(self._url, content=body, headers={"Content-Type": "application/x-ndjson"})
        except httpx.TransportError as error:
            raise Away(f"{type(error).__name__}: {error}") from None
        if answer.is_success:
            return
        if answer.status_code in (408, 425, 429) or answer.status_code >= 500:
            raise Away(f"it answered {answer.status_code}", _seconds(answer.headers.get("retry-after", "")))
        raise Refused(f"it answered {answer.status_code}: {answer.text[:200]}")

    def close(self) -> None:
        """See :class:`Receiver`."""
        self._client.close()


class SyslogReceiver:
    """RFC 5424 messages over TCP with the octet counts of RFC 6587, or over TLS (RFC 5425).

    Syslog has no acknowledgement: what was in flight when a connection broke may be lost. After each batch it is looked whether the
    receiver has hung up.
    """

    def __init__(self, host: str, port: int, tls: bool) -> None:
        self._host, self._port, self._tls = host, port, tls
        self._socket: socket.socket | None = None
        self._me = socket.gethostname() or "-"

    def send(self, lines: Sequence[Line]) -> None:
        """See :class:`Receiver`."""
        try:
            link = self._socket = self._socket or self._connected()
            link.sendall(b"".join(self._framed(line, record) for line, record in lines))
            if not self._hears(link):
                raise ConnectionError("the receiver hung up")
        except OSError as error:
            self.close()
            raise Away(f"{type(error).__name__}: {error}") from None

    def close(self) -> None:
        """See :class:`Receiver`."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connected(self) -> socket.socket:
        link = socket.create_connection((self._host, self._port), SECONDS)
        if not self._tls:
            return link
        return ssl.create_default_context().wrap_socket(link, server_hostname=self._host)

    def _framed(self, line: str, record: dict[str, Any]) -> bytes:
        bad = record["kind"] == "hop.refused" or record.get("outcome", "ok") != "ok"
        priority = _FACILITY * 8 + (_WARNING if bad else _NOTICE)
        # The text is ASCII (JSON with escapes), without a line end: nothing in it ends a message or begins another.
        head = f"<{priority}>1 {record['at']} {self._me} remit - {record['kind']} - "
        message = (head + line.rstrip("\r\n")).encode("ascii", "backslashreplace")
        return b"%d %s" % (len(message), message)

    @staticmethod
    def _hears(link: socket.socket) -> bool:
        link.settimeout(0)
        try:
            return link.recv(1) != b""
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        finally:
            link.settimeout(SECONDS)


def receiver(to: str, headers: dict[str, str]) -> Receiver:
    """``http(s)://…``, ``tcp://HOST:PORT`` or ``tls://HOST:PORT``. Raises :class:`ConfigError`.

    INVARIANT: nothing leaves this machine in the clear (test_nothing_leaves_this_machine_in_the_clear).
    """
    parts = urlsplit(to)
    try:
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
    if parts.scheme not in ("http", "https", "tcp", "tls") or not host or "@" in parts.netloc:
        raise ConfigError(f"{to!r} is no receiver", "write https://HOST/PATH, tls://HOST:6514 or tcp://HOST:PORT")
    if parts.scheme in ("http", "tcp") and host not in _LOCAL:
        raise ConfigError(
            f"{to} would carry records in the clear", "use https:// or tls://, or a forwarder on this machine"
        )
    if parts.scheme in ("http", "https"):
        return HttpReceiver(to, headers)
    if port is None:
        raise ConfigError(f"{to!r} names no port", "syslog over TLS is mostly at 6514")
    return SyslogReceiver(host, port, parts.scheme == "tls")


def pushed(send: Callable[[], None], said: Callable[[str], None], wait: Callable[[float], None] = time.sleep) -> None:
    """Do ``send`` until it was taken, with longer and longer pauses. Raises :class:`Refused`."""
    attempt = 0
    while True:
        try:
            return send()
        except Away as away:
            pause = min(max(away.wait, PAUSES[min(attempt, len(PAUSES) - 1)]), 3600.0)
            said(f"not taken: {away}; again in {pause:g} s")
            wait(pause)
            attempt += 1


def parse_headers(text: str) -> dict[str, str]:
    """``Name: value`` lines of a file: secrets have no place among the words of a command. Raises :class:`ConfigError`."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if not line.strip():
            continue
        if not colon or not name.strip() or not value.strip().isprintable():
            raise ConfigError("a line of the file of headers is none", "write Name: value, one a line")
        found[name.strip()] = value.strip()
    return found


def _seconds(text: str) -> float:
    return float(text) if text.isascii() and text.isdigit() else 0.0
