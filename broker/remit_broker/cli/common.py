"""What every command shares: its options, and how anything that goes wrong becomes one message and an exit code."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, ParamSpec, TypeVar

import typer

from remit_broker.adapters.errors import ConfigError, ServiceError
from remit_broker.cli.printing import err, line, say
from remit_schemas.errors import SURFACES, Code, ErrorBody, Refusal

Config = Annotated[
    str | None,
    typer.Option("--config", "-c", help="remit.toml, or its folder (default: ./remit.toml, else the user's)."),
]
Json = Annotated[
    bool, typer.Option("--json", help="One JSON document (or JSON lines) on stdout, everything else on stderr.")
]
Tenant = Annotated[str | None, typer.Option(help="The tenant; without it that of your token, else the default one.")]

REFUSED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Unreachable(Exception):  # noqa: N818 - an answer, not a fault
    """A service this command needs is not there. ``ask`` says how to bring it."""

    def __init__(self, message: str, ask: str) -> None:
        super().__init__(message)
        self.ask = ask


def fail(body: ErrorBody, exit_code: int, as_json: bool) -> NoReturn:
    """Say what went wrong and what to do, and end with ``exit_code``."""
    if as_json:
        say({"error": body})
    show_error(body)
    raise typer.Exit(exit_code)


def own(code: Code, rule: str, message: str, ask: str) -> ErrorBody:
    """The body of an error that this command found by itself: ``rule`` is ``cli.`` and what kind."""
    return ErrorBody(code=code, message=message, rule=f"cli.{rule}", ask=ask)


def show_error(body: ErrorBody) -> None:
    """An error as people read it, on stderr."""
    if body.rule.startswith("cli."):
        err.print(line(("error ", "bold red"), body.message))
    else:
        err.print(line((f"{body.code} ", "bold red"), body.message, (f" ({body.rule})", "dim")))
    if body.ask:
        err.print(line(f"  → {body.ask}"))
    if body.approval_url:
        err.print(line((f"  {body.approval_url}", "dim")))
    if body.effect != "none":
        err.print(line(f"  effect: {body.effect}"))
    if body.txn and body.hop:
        err.print(line((f"  remit why {body.txn}.{body.hop}", "dim")))


def command(function: Callable[P, R]) -> Callable[P, R]:
    """Every way a command can fail becomes an error body and an exit code of the contract; never a traceback."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        as_json = bool(kwargs.get("as_json"))
        try:
            return function(*args, **kwargs)
        except Refusal as no:
            fail(no.body, SURFACES[no.body.code].exit, as_json)
        except ServiceError as gone:
            fail(own(Code.TARGET_UNAVAILABLE, "unreachable", gone.message, gone.ask), UNREACHABLE, as_json)
        except ConfigError as wrong:
            fail(own(Code.MALFORMED, "usage", wrong.message, wrong.ask), USAGE, as_json)
        except Unreachable as gone:
            fail(own(Code.TARGET_UNAVAILABLE, "unreachable", str(gone), gone.ask), UNREACHABLE, as_json)
        except BrokenPipeError:
            raise  # whoever read has read enough
        except (TimeoutError, ConnectionError) as gone:
            what = f"a service did not answer: {str(gone) or type(gone).__name__}"
            fail(own(Code.TARGET_UNAVAILABLE, "unreachable", what, "try again"), UNREACHABLE, as_json)
        except OSError as error:
            what = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
            fail(own(Code.MALFORMED, "file", what, "name a file or folder that can be used"), USAGE, as_json)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except Exception as fault:
            if os.environ.get("REMIT_DEBUG"):
                raise
            what = f"this should not happen: {type(fault).__name__}: {fault}"
            fail(own(Code.INTERNAL, "fault", what, "REMIT_DEBUG=1 shows where"), REFUSED, as_json)

    return run


def run_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on uvloop."""
    import asyncio

    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def typed(option: str, text: str, parse: Callable[[str], T]) -> T:
    """``text`` of an option as a value; what it cannot be is wrong usage. Raises :class:`ConfigError`."""
    try:
        return parse(text)
    except Refusal as bad:
        raise ConfigError(f"{option}: {bad.body.message}", bad.body.ask) from None


def read_text(path: Path | str, max_bytes: int = 1024 * 1024) -> str:
    """A text file, ``-`` for stdin. Raises :class:`ConfigError` where it is no text or too long, ``OSError``."""
    if str(path) == "-":
        data = sys.stdin.buffer.read(max_bytes + 1)
    else:
        with Path(path).open("rb") as file:
            data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ConfigError(f"{path} has more than {max_bytes} bytes", "name another file")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text", "name another file") from None


def read_json(text: str, what: str) -> dict[str, Any]:
    """A JSON object from the command line, ``-`` for stdin, ``@file`` for a file. Raises :class:`ConfigError`."""
    if text == "-" or text.startswith("@"):
        text = read_text(text.removeprefix("@"))
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{what} is not JSON: {error}", 'write an object such as \'{"topic": "NATS"}\'') from None
    if not isinstance(value, dict):
        raise ConfigError(f"{what} is not a JSON object", 'write an object such as \'{"topic": "NATS"}\'')
    return value


def duration(text: str) -> int:
    """Seconds of ``90``, ``90s``, ``10m``, ``2h``. Raises :class:`ConfigError`."""
    unit = {"s": 1, "m": 60, "h": 3600}.get(text[-1:], 0)
    number = text[:-1] if unit else text
    if not (number.isascii() and number.isdigit()) or len(number) > 9:
        raise ConfigError(f"{text!r} is not a duration", "write 90s, 10m or 2h")
    return int(number) * (unit or 1)
