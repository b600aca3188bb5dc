"""Subjects: each one is read as it was made, and nothing else is."""

from __future__ import annotations

import pytest

from remit_schemas import subjects

TXN = "0af7651916cd43dd8448eb211c80319c"
HOP = "b7ad6b7169203331"
CONNECTION = "Abcdefghijklmno0"
INBOX = f"_INBOX_planner.{CONNECTION}"


@pytest.mark.parametrize("txn", [TXN, subjects.NEW])
@pytest.mark.parametrize("op", ["read_file", "look up", "a.b", "$resource", "日本", ">"])
def test_a_request_is_read_as_it_was_made(txn: str, op: str) -> None:
    subject = subjects.request("planner", txn, "mcp", "files", op)
    assert len(subject.split(".")) == 6
    assert subjects.parse_request(subject) == subjects.Request("planner", txn, "mcp", "files", op)


def test_a_request_to_the_broker_itself_is_read() -> None:
    subject = subjects.request("planner", TXN, "remit", "grants", "renew")
    assert subjects.parse_request(subject) == subjects.Request("planner", TXN, "remit", "grants", "renew")


@pytest.mark.parametrize(
    "subject",
    ["", "req", f"req.planner.{TXN}.mcp.files", f"req.planner.{TXN}.mcp.files.a.b", f"res.planner.{TXN}.mcp.files.a",
     f"req.Planner.{TXN}.mcp.files.a", f"req.remit.{TXN}.mcp.files.a", f"req..{TXN}.mcp.files.a",
     "req.planner.old.mcp.files.a", f"req.planner.{TXN.upper()}.mcp.files.a", f"req.planner.{TXN}.tool.files.a",
     f"req.planner.{TXN}.mcp.Files.a", f"req.planner.{TXN}.mcp.remit.a", f"req.planner.{TXN}.mcp.files.",
     f"req.planner.{TXN}.mcp.files.=41", f"req.planner.{TXN}.mcp.files.=2A", f"req.planner.{TXN}.mcp.files.=2F",
     f"req.planner.{TXN}.mcp.*.a", f"req.planner.{TXN}.mcp.files.>"],
)  # fmt: skip
def test_what_is_no_request_is_none(subject: str) -> None:
    assert subjects.parse_request(subject) is None


def test_a_service_is_read_as_it_was_made() -> None:
    assert subjects.parse_service(subjects.service("mcp", "files", "look up")) == ("mcp", "files", "look up")
    for wrong in ("svc.mcp.files", "svc.mcp.files.a.b", "req.mcp.files.a", "svc.mcp.files.=41", ""):
        assert subjects.parse_service(wrong) is None


def test_replies_and_control_messages_are_read_as_they_were_made() -> None:
    expected = subjects.Reply("files", "r1", TXN, HOP)
    assert subjects.parse_reply(subjects.reply("files", "r1", TXN, HOP)) == expected
    assert subjects.parse_reply(subjects.control("files", "r1", TXN, HOP), "ctl") == expected


@pytest.mark.parametrize(
    "subject",
    [f"ctl.files.r1.{TXN}.{HOP}", f"res.files.r1.{TXN}", f"res.files.r1.{TXN}.{HOP}.x", f"res.files.r1.{HOP}.{TXN}",
     f"res.files.r1.{TXN}.{'0' * 16}", f"res.files.r1.{subjects.NEW}.{HOP}", ""],
)  # fmt: skip
def test_what_is_no_reply_is_none(subject: str) -> None:
    assert subjects.parse_reply(subject) is None


@pytest.mark.parametrize("tail", ["1", "a.b", "A-b_9"])
def test_reply_subject_is_own(tail: str) -> None:
    assert subjects.inbox_prefix("planner", CONNECTION) == INBOX
    assert subjects.is_own_inbox(f"{INBOX}.{tail}", "planner")
    assert not subjects.is_own_inbox(f"{INBOX}.{tail}", "plan")
    assert not subjects.is_own_inbox(f"{INBOX}.{tail}", "planner2")


@pytest.mark.parametrize(
    "subject",
    ["", INBOX, f"{INBOX}.", f"{INBOX}.*", f"{INBOX}.>", f"{INBOX}.a*", f"{INBOX}.a..b", f"{INBOX}.a b", f"{INBOX}.é",
     f"{INBOX}.$JS", "_INBOX_planner.*.1", "_INBOX_planner.>", "_INBOX_planner.short.1", f"_INBOX.{CONNECTION}.1",
     f"_INBOX_other.{CONNECTION}.1", "$JS.API.STREAM.PURGE.ledger", f"ledger.default.{TXN}", "svc.mcp.files.read_file",
     f"req.planner.{TXN}.mcp.files.a", f"{INBOX}.{'a' * 256}", f"{INBOX}.a\n", f" {INBOX}.a"],
)  # fmt: skip
def test_any_other_reply_subject_is_foreign(subject: str) -> None:
    assert not subjects.is_own_inbox(subject, "planner")
