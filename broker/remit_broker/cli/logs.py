"""Log lines for people or for programs: each says which task and hop it is about, and none can be made to look like two.

A name or a message comes from whoever sent it. What a terminal or a collector of logs would obey (a new line, an escape) is shown as
text, so that nobody writes a line of their own into the log.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final, Literal

from remit_broker.cli.printing import visible
from remit_broker.current import ABOUT

Format = Literal["text", "json"]

_NOISY: Final = ("nats", "httpx", "httpcore", "uvicorn", "opentelemetry")


class Lines(logging.Formatter):
    """For people. What belongs to a line (a traceback) stands indented below it."""

    def format(self, record: logging.LogRecord) -> str:
        """INVARIANT: what stands at the beginning of a line was written by the broker (test_no_name_writes_a_line_of_its_own)."""
        about = " ".join(f"{key}={value}" for key, value in _about(record).items())
        head = f"{_at(record)} {record.levelname} {record.name} {visible(record.getMessage())}"
        below = [f"    {visible(line)}" for line in _trace(self, record).splitlines()]
        return "\n".join([f"{head} {about}".rstrip(), *below])


class JsonLines(logging.Formatter):
    """For programs: one JSON object a line, in ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        """``at`` (RFC 3339), ``level``, ``logger``, ``message``; ``txn`` and ``hop`` where it is about one, ``error`` with a
        traceback.
        """
        said: dict[str, Any] = {
            "at": _at(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_about(record),
        }
        if trace := _trace(self, record):
            said["error"] = trace
        return json.dumps(said)


def set_up(quiet: bool, form: Format = "text") -> None:
    """Faults and what happens on standard error, without the chatter of libraries."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else Lines())
    logging.basicConfig(level=logging.ERROR if quiet else logging.INFO, handlers=[handler], force=True)
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.ERROR)


def _at(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _about(record: logging.LogRecord) -> dict[str, str]:
    about = ABOUT.get()
    return {"txn": about.txn, "hop": about.hop} if about is not None else {}


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return formatter.formatException(record.exc_info) if record.exc_info else ""
