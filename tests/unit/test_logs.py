"""Log lines: nobody writes one of their own, and each says which task and hop it is about."""

from __future__ import annotations

import json
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remit_broker.cli.logs import JsonLines, Lines
from remit_broker.current import ABOUT, About

FORGED = "eve\n2026-11-03T14:02:11.000Z ERROR remit everything is fine\r\x1b[2K\u2028\x00"


def record(message: str, *args: object, error: BaseException | None = None) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__) if error is not None else None
    return logging.LogRecord("remit", logging.WARNING, __file__, 1, message, args, info)


def raised(text: str) -> BaseException:
    try:
        raise ValueError(text)
    except ValueError as error:
        return error


def test_no_name_writes_a_line_of_its_own() -> None:
    line = Lines().format(record("%s attached", FORGED))
    assert "\n" not in line and "\x1b" not in line and "\r" not in line and "\u2028" not in line
    assert "eve\\n2026" in line


def test_no_text_of_an_error_begins_a_line() -> None:
    lines = Lines().format(record("fault", error=raised(FORGED))).split("\n")
    assert len(lines) > 2
    assert all(line.startswith("    ") and line.isprintable() for line in lines[1:])


@settings(deadline=None)
@given(st.text(), st.text())
def test_whatever_was_said_is_one_line_of_json(name: str, why: str) -> None:
    line = JsonLines().format(record("%s was refused", name, error=raised(why)))
    assert line.isascii() and line.isprintable()
    said = json.loads(line)
    assert said["message"] == f"{name} was refused"
    assert (said["level"], said["logger"]) == ("warning", "remit") and "Traceback" in said["error"]


@pytest.mark.parametrize("form", [Lines(), JsonLines()])
def test_a_line_says_which_task_and_hop_it_is_about(form: logging.Formatter) -> None:
    token = ABOUT.set(About("a" * 32, "b" * 16))
    try:
        line = form.format(record("it failed"))
    finally:
        ABOUT.reset(token)
    assert "a" * 32 in line and "b" * 16 in line
    assert "a" * 32 not in form.format(record("it failed"))
