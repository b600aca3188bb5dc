"""What the commands print. Names and messages come from agents and servers: none of them styles, moves or hides anything."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import msgspec
from rich.console import Console
from rich.text import Text

Part = str | tuple[str, str]
"""A text, or a text and its style."""


def _console(stderr: bool = False) -> Console:
    """A console without markup. Where it is not a terminal, lines stay whole for whoever reads them."""
    narrow = (sys.stderr if stderr else sys.stdout).isatty() or "COLUMNS" in os.environ
    return Console(
        stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True, width=None if narrow else 240
    )


out = _console()
err = _console(stderr=True)


def visible(text: object, keep: str = "") -> str:
    """``text`` with everything a terminal would obey, hide or turn round as an escape; ``keep`` are exceptions.

    Control and format characters (Unicode Cc, Cf, Zl, Zp, and what is not assigned): ``\\x1b[31m`` is shown, not obeyed.
    """
    # INVARIANT: no byte of a record reaches the terminal as a command (test_control_characters_are_shown_not_obeyed).
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode("ascii")
        for char in str(text)
    )


def line(*parts: Part) -> Text:
    """One line of text, made safe to show."""
    return Text.assemble(
        *((visible(part), "") if isinstance(part, str) else (visible(part[0]), part[1]) for part in parts)
    )


def say(value: Any) -> None:
    """One JSON document, on one line, on stdout, in ASCII."""
    sys.stdout.write(json.dumps(msgspec.to_builtins(value)) + "\n")
    sys.stdout.flush()
