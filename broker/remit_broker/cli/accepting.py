"""``remit servers accept``: what of a server waits, place by place, and accepting exactly that."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Final

import typer

from remit_broker.cli.client import BrokerClient
from remit_broker.cli.common import REFUSED, Config, Json, Tenant, command, fail, own
from remit_broker.cli.printing import err, line, out, say
from remit_broker.config import load
from remit_schemas.errors import Code

SHOWN: Final = 4_000
"""Characters of one side of a change on a terminal."""


@command
def accept(
    name: Annotated[str, typer.Argument()],
    tools: Annotated[list[str] | None, typer.Argument(help="Only these tools; default: all that wait.")] = None,
    digest: Annotated[
        str | None, typer.Option(help="Accept without a question what was shown with this digest.")
    ] = None,
    forget: Annotated[
        bool, typer.Option(help="Also let go of definitions that the server does not offer now.")
    ] = False,
    tenant: Tenant = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show what of a server's definitions waits, and accept exactly that."""
    client = BrokerClient(load(config), tenant)
    told = client.get(f"/api/servers/{name}/changes")
    waiting = [one for one in told["waiting"] if not tools or one["op"] in tools]
    shown = _digest(waiting)
    if missing := sorted({*(tools or ())} - {one["op"] for one in waiting}):
        fail(own(Code.UNKNOWN_TARGET, "accept", f"{missing[0]} does not wait", "remit servers list"), REFUSED, as_json)
    if not waiting and not (forget and told["forgettable"]):
        return say({"accepted": [], "waiting": []}) if as_json else out.print("nothing was waiting")
    if not as_json:
        _show(name, waiting, told["forgettable"] if forget else [], shown)
    if digest is not None and digest != shown:
        ask = "look at it again, and give the digest that is shown"
        fail(
            own(Code.CONFLICT, "accept", "what waits is not what that digest stands for; nothing was accepted", ask),
            REFUSED,
            as_json,
        )
    if digest is None and (as_json or not _whole(waiting) or not _agreed()):
        if as_json:
            say({"accepted": [], "waiting": waiting, "digest": shown})
        else:
            err.print(line(f"nothing was accepted  → remit servers accept {name} --digest {shown}"))
        raise typer.Exit(REFUSED)
    # INVARIANT: what goes to the broker are the digests of what was shown here, not a wish to accept whatever there is by then
    # (test_what_changed_again_after_it_was_shown_is_not_accepted).
    done = client.post(
        f"/api/servers/{name}/accept", {"digests": {one["op"]: one["digest"] for one in waiting}, "forget": forget}
    )
    if as_json:
        say({**done, "digest": shown})
    else:
        out.print(line("accepted: " + (", ".join(done["accepted"]) or "nothing new")))


def _digest(waiting: list[dict[str, Any]]) -> str:
    import msgspec

    from remit_broker.core.pins import Waiting, together

    return together(msgspec.convert(waiting, list[Waiting]))


def _agreed() -> bool:
    """Whether somebody at a terminal says yes; a script says which digest it means."""
    return sys.stdin.isatty() and typer.confirm("Accept this?", default=False)


def _whole(waiting: list[dict[str, Any]]) -> bool:
    """Whether all of it was shown: nobody is asked about what they could not see."""
    from remit_broker.core.pins import MORE

    sides = [side for one in waiting for change in one["changes"] for side in (change["old"], change["new"])]
    return all(side is None or (len(side) <= SHOWN and side != MORE) for side in sides)


def _show(name: str, waiting: list[dict[str, Any]], going: list[str], digest: str) -> None:
    for one in waiting:
        out.print(line((f"{name}/{one['op']}", "bold"), f"  {one['reason']}"))
        if one["was"] is None:
            out.print(line(("  it was never accepted; all of it:", "dim")))
        elif one["changes"] and all(change["old"] is None for change in one["changes"]):
            out.print(line(("  what was accepted is not known any more; all of it:", "dim")))
        for change in one["changes"]:
            out.print(line(f"  {change['where'] or '/'}"))
            for side, sign, colour in (("old", "-", "red"), ("new", "+", "green")):
                for text in _lines(change[side]):
                    out.print(line((f"    {sign} {text}", colour)))
    if going:
        out.print(line(f"forgotten: {', '.join(going)}"))
    out.print(line(("digest ", "dim"), digest))


def _lines(text: str | None) -> list[str]:
    if text is None:
        return []
    cut = (
        text
        if len(text) <= SHOWN
        else f"{text[:SHOWN]}… and {len(text) - SHOWN} characters that are not shown: --json has all of it"
    )
    return cut.split("\n")
