"""``remit trace``: the spans of what happened, made of the records once more, for a collector that was not there or lost them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from remit_broker.adapters.errors import ConfigError
from remit_broker.cli.audit_export import moment
from remit_broker.cli.chains import whole
from remit_broker.cli.client import BrokerClient
from remit_broker.cli.common import Config, Json, Tenant, Unreachable, command
from remit_broker.cli.printing import line, out, say
from remit_broker.config import load

if TYPE_CHECKING:
    from remit_broker.core.retrace import Told

app = typer.Typer(help="Traces of what happened, from the records.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """So that the one command there is has a name."""


@app.command("resend")
@command
def resend(
    txn: Annotated[str | None, typer.Argument(metavar="TXN", help="One task, by a unique beginning.")] = None,
    since: Annotated[
        str | None, typer.Option(help="All tasks opened at or after: RFC 3339, or 90s, 10m, 24h, 7d ago.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Opened before: RFC 3339, or as long ago.")] = None,
    to: Annotated[
        str | None, typer.Option(metavar="URL", help="The collector (OTLP/HTTP); default: traces.endpoint.")
    ] = None,
    tenant: Tenant = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Send the spans of a task, or of a time, again. A Jaeger that has them already may show them twice.

    They are those of hops that have ended and of refused calls, with the ids that they always had. That somebody read the records
    for it is recorded.
    """
    from remit_broker.adapters.otlp import Again, NotTaken, OtlpSpans

    settings = load(config)
    endpoint = to or settings.config.traces.endpoint
    if (txn is None) is (since is None):
        raise ConfigError("name a task, or a time with --since", "such as: remit trace resend TXN")
    if to is None and not OtlpSpans.wanted(endpoint):
        raise ConfigError("nothing says where spans go", "--to http://127.0.0.1:4318, or traces.endpoint in remit.toml")
    client = BrokerClient(settings, tenant)
    there = Again(to or ("" if OtlpSpans.wanted("") else endpoint))
    told = _of(client, whole(client, txn)) if txn else _between(client, since, until)
    try:
        sent = there.send(told)
    except NotTaken as no:
        raise Unreachable(str(no), "see that the collector runs and takes OTLP/HTTP there") from None
    finally:
        there.close()
    if as_json:
        say({"spans": sent, "to": endpoint})
    else:
        out.print(line(f"sent {sent} spans"))


def _of(client: BrokerClient, txn: str) -> Iterator[Told]:
    from remit_broker.core.retrace import of_chain, of_refusal

    found = client.get(f"/api/chains/{txn}")
    yield from of_chain(found["records"])
    yield from map(of_refusal, found["refusals"])


def _between(client: BrokerClient, since: str | None, until: str | None) -> Iterator[Told]:
    """Tasks opened in that time, and calls refused in it that are of no task. Memory holds one task."""
    from remit_broker.core.retrace import of_refusal

    now = datetime.now(UTC)
    times = {"since": moment(since, now), "until": moment(until, now)}
    cursor: str | None = None
    while True:
        page: dict[str, Any] = client.get("/api/chains", limit=200, cursor=cursor, **times)
        for row in page["chains"]:
            yield from _of(client, row["txn"])
        if (cursor := page["cursor"]) is None:
            break
    after: str | None = None
    more = True
    while more:
        page = client.get("/api/records", limit=1000, after=after, **times)
        yield from (
            of_refusal(entry["record"])
            for entry in page["records"]
            if entry["stream"] == "refusals" and entry["record"]["txn"] is None
        )
        after, more = page["cursor"], page["more"]
