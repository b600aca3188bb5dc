"""What a server writes on its standard error: kept in a bounded private file, never sent anywhere."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import Final

from remit_broker.core.backends import WITHHELD

MAX_BYTES: Final = 1024 * 1024
"""Size at which the file becomes ``<file>.1`` (replacing an older one): twice this is the most that is kept."""

_HELD: Final = 64 * 1024
_LAST: Final = 20
_LINE: Final = 500


class ServerLog:
    """Appends to ``path`` (mode 0600) within :data:`MAX_BYTES`, and remembers the last lines for messages. None keeps no file."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._last: deque[str] = deque(maxlen=_LAST)
        self._rest = b""

    def write(self, data: bytes) -> None:
        """Keep ``data``. A full disk or a lost folder loses the log, not the server."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-_LINE:]
        self._last.extend(_plain(line) for line in lines if line.strip())
        if self._path is None:
            return
        try:
            self._append(self._path, data[-MAX_BYTES:])
        except OSError:
            self._path = None

    def hiding(self, texts: tuple[str, ...]) -> ServerLog:
        """This log for a server that was given these texts, which are replaced in what it says."""
        return _Hiding(self, texts) if texts else self

    def last_line(self) -> str:
        """The newest line that says something, fit for a terminal; empty where there is none."""
        rest = _plain(self._rest)
        return rest or (self._last[-1] if self._last else "")

    def _append(self, path: Path, data: bytes) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "ab") as file:
            full = file.tell() + len(data) > MAX_BYTES
            if not full:
                file.write(data)
        if full:
            path.replace(path.with_name(path.name + ".1"))
            path.touch(mode=0o600)
            self._append(path, data)


def _plain(line: bytes) -> str:
    """One line without control characters: a server must not be able to steer the terminal of whoever reads this."""
    return "".join(c if c.isprintable() else " " for c in line[:_LINE].decode(errors="replace")).strip()


class _Hiding(ServerLog):
    """Whole lines, without some texts in them.

    INVARIANT: a credential that a server prints stands in no log (test_a_credential_that_a_process_prints_stands_in_no_log).
    """

    def __init__(self, log: ServerLog, texts: tuple[str, ...]) -> None:
        super().__init__(None)
        self._log, self._texts = log, tuple(text.encode() for text in texts)
        self._held = b""

    def write(self, data: bytes) -> None:
        """Keep ``data`` as soon as its line is whole."""
        self._held += data
        end = len(self._held) if len(self._held) > _HELD else self._held.rfind(b"\n") + 1
        whole, self._held = self._held[:end], self._held[end:]
        for text in self._texts:
            whole = whole.replace(text, WITHHELD.encode())
        super().write(whole)
        self._log.write(whole)
