"""What ``/metrics`` says of this moment: how much is in hand, how far the index is behind, how much of the caps is used.

No label holds the name of a tenant, a user, an agent or a tool: whoever reads metrics learns how busy a broker is, not who keeps it
so, and no caller can make a new series.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from remit_broker import __version__

Family = GaugeMetricFamily


class Load(NamedTuple):
    """What a process has to do: calls in hand, those that have not begun, and how many it takes at most."""

    in_hand: int
    waiting: int
    room: int


def gauge(name: str, text: str, values: Mapping[tuple[str, ...], float], labels: tuple[str, ...] = ()) -> Family:
    """One metric with a value for each combination of its labels."""
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric(key, value)
    return family


def of(name: str, text: str, label: str, values: Mapping[str, float]) -> Family:
    """One metric with one label."""
    return gauge(name, text, {(key,): value for key, value in values.items()}, (label,))


def build() -> Family:
    """Which version this is."""
    return gauge("remit_build_info", "Which version runs", {(__version__,): 1}, ("version",))


def parts(troubles: Iterable[str], wrong: Iterable[str]) -> list[Family]:
    """Whether a hop would be taken, and of each part whether something is wrong with it. Connections are one part."""
    bad = {part.partition(".")[0] for part in wrong}
    states: dict[tuple[str, ...], float] = {(part,): part in bad for part in {*troubles, "bus"}}
    return [
        gauge("remit_ready", "Whether a hop would be taken", {(): not bad}),
        gauge("remit_trouble", "Whether something is wrong with a part of the broker", states, ("part",)),
    ]


def used(rows: Iterable[dict[str, Any]]) -> list[Family]:
    """How much of the caps is used: the fullest account of each kind and window, and how many are used up.

    ``rows`` are those of ``/api/budgets``, of all tenants.
    """
    fullest: dict[tuple[str, ...], float] = {}
    gone: Counter[tuple[str, ...]] = Counter()
    for row in rows:
        over = False
        for unit, cap in row["cap"].items():
            share = (row["spent"][unit] + row["held"][unit]) / cap if cap else 1.0
            key = (row["kind"], row["window"], unit)
            fullest[key] = max(share, fullest.get(key, 0.0))
            over = over or share >= 1
        gone[(row["kind"],)] += over
    return [
        gauge(
            "remit_caps_used_ratio", "Spent and held of a cap, of the account that is fullest", fullest,
            ("kind", "window", "unit"),
        ),
        gauge("remit_caps_exhausted", "Accounts of which nothing is left", {k: float(v) for k, v in gone.items()}, ("kind",)),
    ]  # fmt: skip


def load(now: Load) -> list[Family]:
    """What a process has to do."""
    return [
        gauge("remit_hops_in_hand", "Calls that were taken and have not ended", {(): now.in_hand}),
        gauge("remit_hops_waiting", "Calls that were taken and have not begun", {(): now.waiting}),
        gauge("remit_hops_room", "How many calls are taken at most: limits.concurrency", {(): now.room}),
    ]


def counted(name: str, text: str, label: str, values: Iterable[str]) -> Family:
    """How many there are of each."""
    return gauge(name, text, {(value,): float(number) for value, number in Counter(values).items()}, (label,))


class _Given(Collector):
    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Family]:
        yield from self._families


def text(families: Iterable[Family]) -> bytes:
    """In the format of Prometheus."""
    registry = CollectorRegistry()
    registry.register(_Given(list(families)))
    return generate_latest(registry)
