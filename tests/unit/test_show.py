"""What people read of long work: hops that wait for an input, go on, and have their grants renewed."""

from __future__ import annotations

from rich.console import Console

from remit_broker.cli.show import explained, tree
from remit_schemas.budget import ONE_CALL, Budget
from tests.support.story import Story, hop_id

A = hop_id(0)


def drawn(story: Story) -> str:
    console = Console(width=200, color_system=None)
    with console.capture() as said:
        console.print(tree(story.records, []))
    return said.get()


def told(story: Story) -> str:
    return "\n".join(text.plain for text in explained(story.records[-1]))


def test_a_parked_hop_is_shown_as_waiting_and_a_resumed_one_as_running() -> None:
    story = Story()
    story.open(A, budget=Budget(1000, 0, 5), exp=1_800_000_000)
    story.renew(A, 1_800_000_060)
    assert told(story) == "its grant was renewed at 2026-11-03T14:02:11.000Z, until 2027-01-15T08:01:00Z"
    assert "running, holds $0.001 5 calls" in drawn(story)
    story.park(A, Budget(300, 0, 0), reason="it asks for an input")
    assert "waits for an input since 2026-11-03T14:02:11.000Z, spent $0.0003 1 call so far" in drawn(story)
    assert told(story).startswith("parked at 2026-11-03T14:02:11.000Z: it asks for an input")
    story.resume(A, ONE_CALL)
    assert "running, holds $0 1 call, resumed at 2026-11-03T14:02:11.000Z" in drawn(story)
    assert told(story).splitlines()[0] == "resumed at 2026-11-03T14:02:11.000Z with an input of 4 bytes"
    story.park(A)
    story.close(A, outcome="cancelled")
    assert "asked for an input 2 times" in drawn(story)
