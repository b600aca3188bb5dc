"""What every command shares: its options, how it prints, and how anything that goes wrong becomes one message and a code."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, ParamSpec, TypeVar

import msgspec
import typer
from rich.console import Console

from remit_broker.adapters.errors import ConfigError
from remit_schemas.errors import SURFACES, Code, ErrorBody, Refusal

Config = Annotated[
    str | None,
    typer.Option("--config", "-c", help="remit.toml, or its folder (default: ./remit.toml, else the user's)."),
]
Json = Annotated[
    bool, typer.Option("--json", help="One JSON document (or JSON lines) on stdout, everything else on stderr.")
]

REFUSED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3

# Not a terminal: lines stay whole for whoever reads them.
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 240)
err = Console(stderr=True, highlight=False, soft_wrap=True)

P = ParamSpec("P")
R = TypeVar("R")


class Unreachable(Exception):  # noqa: N818 - an answer, not a fault
    """A service this command needs is not there. ``ask`` says how to bring it."""

    def __init__(self, message: str, ask: str) -> None:
        super().__init__(message)
        self.ask = ask


def say(value: Any) -> None:
    """One JSON document, on one line, on stdout."""
    sys.stdout.write(json.dumps(msgspec.to_builtins(value), ensure_ascii=False) + "\n")
    sys.stdout.flush()


def fail(message: str, ask: str, code: int, as_json: bool, body: ErrorBody | None = None) -> NoReturn:
    """Say what went wrong and what to do, and end with ``code``."""
    if as_json:
        told = msgspec.to_builtins(body) if body else {"code": _code_of(code), "message": message, "ask": ask}
        say({"error": told})
    label = f"{body.code} " if body else ""
    err.print(
        f"[bold red]{label}[/]{_plain(message)}" + (f" [dim]({_plain(body.rule)})[/]" if body and body.rule else "")
    )
    if ask:
        err.print(f"  → {_plain(ask)}")
    if body and body.effect != "none":
        err.print(f"  effect: {body.effect}")
    if body and body.txn:
        err.print(f"  [dim]record {body.txn}.{body.hop}[/]")
    raise typer.Exit(code)


def _plain(text: str) -> str:
    return text.replace("[", "\\[")


def _code_of(exit_code: int) -> str:
    return {USAGE: "USAGE", UNREACHABLE: "UNREACHABLE"}.get(exit_code, Code.INTERNAL)


def command(function: Callable[P, R]) -> Callable[P, R]:
    """Every way a command can fail becomes a message, an ``ask`` and an exit code of the contract; never a traceback."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        as_json = bool(kwargs.get("as_json"))
        try:
            return function(*args, **kwargs)
        except Refusal as no:
            fail(no.body.message, no.body.ask, SURFACES[no.body.code].exit, as_json, no.body)
        except ConfigError as wrong:
            fail(wrong.message, wrong.ask, USAGE, as_json)
        except Unreachable as gone:
            fail(str(gone), gone.ask, UNREACHABLE, as_json)
        except OSError as error:
            fail(f"{error.filename or ''} {error.strerror or error}".strip(), "", USAGE, as_json)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except Exception as fault:
            if os.environ.get("REMIT_DEBUG"):
                raise
            fail(
                f"this should not happen: {type(fault).__name__}: {fault}",
                "REMIT_DEBUG=1 shows where",
                REFUSED,
                as_json,
            )

    return run


def read_json(text: str, what: str) -> dict[str, Any]:
    """A JSON object from the command line, ``-`` for stdin, ``@file`` for a file. Raises :class:`ConfigError`."""
    if text == "-":
        text = sys.stdin.read()
    elif text.startswith("@"):
        text = Path(text[1:]).read_text(encoding="utf-8")
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{what} is not JSON: {error}", 'write an object such as \'{"topic": "NATS"}\'') from None
    if not isinstance(value, dict):
        raise ConfigError(f"{what} is not a JSON object", 'write an object such as \'{"topic": "NATS"}\'')
    return value


def duration(text: str) -> int:
    """Seconds of ``90``, ``90s``, ``10m``, ``2h``. Raises :class:`ConfigError`."""
    unit = {"s": 1, "m": 60, "h": 3600}.get(text[-1:], 0)
    number = text[:-1] if unit else text
    if not number.isdigit() or len(number) > 9:
        raise ConfigError(f"{text!r} is not a duration", "write 90s, 10m or 2h")
    return int(number) * (unit or 1)
