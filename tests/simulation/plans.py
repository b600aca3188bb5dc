"""What happens in a run, drawn from its seed before it begins: who calls whom with what, and what goes wrong meanwhile.

Which faults a run has is drawn too: a run with all of them at once would hide what each of them finds.
"""

from __future__ import annotations

import random
from typing import Any, NamedTuple

Plan = dict[str, Any]

FAULTS = (
    "lost acks", "late acks", "slow commits", "leader changes", "restarts", "power cut", "crashes", "freezes", "cuts",
    "partitions", "callee crashes", "caller crashes", "disk", "clocks", "consumers", "duplicates", "stops",
)  # fmt: skip


CROSSINGS = ("call", "smuggle", "close", "wait", "approval", "resume", "decide", "revoke", "shut")
"""What somebody of one tenant tries with the grants and ids of another."""


STOPPABLE = (("agent", "leaf"), ("agent", "worker"), ("user", "ann"), ("tool", "mcp/tools/*"), ("tool", "agent/odd/*"))


class Act(NamedTuple):
    """Something that an operator does ``at`` seconds after the start."""

    at: float
    what: str
    about: str = ""


class Story(NamedTuple):
    """A run: ``txns`` as (user, budget, ttl), calls of the desk in each, acts, faults, and for how long there are any.

    ``people`` is after how many seconds, on average, somebody looks at what waits for an approval.
    """

    txns: list[Plan]
    acts: list[Act]
    faults: frozenset[str]
    seconds: float
    people: float


def story(rng: random.Random, *, clustered: bool, tenants: tuple[str, ...] = ("default",)) -> Story:
    """A story for a town."""
    seconds = rng.choice((1.0, 2.0, 4.0, 4.0, 8.0))
    faults = _faults(rng, clustered)
    if "stops" in faults:
        # Time enough for calls while somebody cannot hear.
        seconds = 8.0
    count = rng.choice((1, 1, 1, 2, 3))
    txns = [_txn(rng, seconds) for _ in range(max(count, len(tenants)))]
    for number, plan in enumerate(txns):
        # The same names in each: only the account that they come from says whose they are.
        plan["tenant"] = tenants[number % len(tenants)]
    acts = _acts(rng, seconds)
    if len(tenants) > 1:
        acts += [Act(rng.random() * seconds, "cross", rng.choice(CROSSINGS)) for _ in range(rng.choice((2, 4, 8)))]
    return Story(txns, sorted(acts), faults, seconds, rng.choice((0.03, 0.1, 0.3)))


def _faults(rng: random.Random, clustered: bool) -> frozenset[str]:
    kind = rng.random()
    if kind < 0.12:
        return frozenset()
    wanted = rng.sample(FAULTS, rng.choice((1, 1, 2, 3, 5)))
    drop = {"power cut"} if rng.random() < 0.6 else set()
    if not clustered:
        drop.add("leader changes")
    return frozenset(wanted) - drop


def _txn(rng: random.Random, seconds: float) -> Plan:
    calls = rng.choice((3, 6, 10, 14))
    tight = rng.random() < 0.5
    budget = [rng.randrange(300, 900), 2000, rng.randrange(4, 12)] if tight else [100_000, 100_000, 60]
    return {
        "user": rng.choice(("ann", "bob")),
        "budget": budget,
        "ttl": rng.choice((2, 5, 600)) if rng.random() < 0.3 else 600,
        "scope": rng.choice((["agent/**", "mcp/**"], ["agent/**", "mcp/**"], ["agent/worker/**", "mcp/**"])),
        "calls": [call(rng, 0, seconds) for _ in range(calls)],
        "together": rng.random() < 0.15,
        "close": rng.choice((None, None, "early", "late")),
        "max_depth": rng.choice((8, 8, 2)),
    }


def call(rng: random.Random, depth: int, seconds: float, chain: tuple[str, ...] = ()) -> Plan:
    """One call of the desk, or of an agent."""
    agents = [name for name in ("planner", "worker", "leaf") if name not in chain] or ["leaf"]
    kind = rng.random()
    if kind < 0.66:
        name = rng.choice(agents)
        to, plan = f"agent/{name}/do", _skill(rng, depth, seconds, (*chain, name))
    elif kind < 0.8:
        to, plan = "agent/odd/do", _odd(rng)
    elif kind < 0.94:
        to, plan = "mcp/tools/read", _odd(rng)
    else:
        to, plan = rng.choice(("agent/nobody/do", "agent/leaf/forbidden", "agent/desk/do", "agent/planner/do")), {}
    careful = rng.random() < 0.3 and CAREFULLY.get(to)
    to = careful or to
    found: Plan = {"to": to, "plan": plan, "wait": rng.random() * seconds if depth == 0 else rng.random() * 0.02}
    if rng.random() < 0.85:
        found["budget"] = [rng.randrange(250), rng.randrange(400), rng.randrange(1, 5)]
    found["ttl"] = rng.choice((0.4, 1.0, 2.0, 4.0)) if rng.random() < 0.9 else None
    if rng.random() < 0.2:
        found["key"] = rng.choice(("k1", "k2", "k3"))
    if rng.random() < 0.2:
        found["retry"] = 2
    if rng.random() < 0.1:
        found["patience"] = rng.random() * 0.6
    if careful:
        _careful(rng, found)
    if kind < 0.66 and not (careful and depth):
        _long(rng, found)
    return found


CAREFULLY = {
    "agent/worker/do": "agent/worker/careful", "agent/leaf/do": "agent/leaf/careful", "mcp/tools/read": "mcp/tools/write",
}  # fmt: skip


def _careful(rng: random.Random, found: Plan) -> None:
    """A call that needs an approval: how often it is repeated until somebody has given one, and what else is tried."""
    found.pop("key", None)
    found["again"], found["pause"] = rng.choice((2, 5, 8)), rng.choice((0.05, 0.2, 0.6, 1.5))
    found["ttl"] = rng.choice((2.0, 4.0))
    draw = rng.random()
    if draw < 0.4:
        found["names"] = True
    if draw < 0.15:
        found["twist"] = True
    elif draw < 0.3:
        found["reuse"] = True
    elif draw < 0.4:
        found["waits"] = True
    if rng.random() < 0.4:
        found["eager"] = rng.choice((2, 2, 3))


def _long(rng: random.Random, found: Plan) -> None:
    """What only an agent on the SDK is asked for: inputs, windows, kept results, work of its own."""
    plan, draw = found["plan"], rng.random()
    if draw < 0.08:
        plan["ask"] = rng.choice((0.05, 0.5, 2.0))
        plan["stale"] = rng.random() < 0.3
    elif draw < 0.14:
        plan["park"] = True
    elif draw < 0.18:
        found["detach"] = rng.choice(("wait", "leave"))
        found["budget"] = [rng.randrange(250), rng.randrange(400), rng.randrange(2, 5)]
    elif draw < 0.22:
        plan["progress"], found["window"] = 6, rng.choice((1, 2))
    elif draw < 0.32:
        # Longer than a grant lives: it has to be renewed.
        found["ttl"], plan["sleep"] = 8.0, rng.choice((1.5, 2.5, 4.0))
    elif draw < 0.38:
        found["keep"], found["key"] = True, rng.choice(("k1", "k2", "k3"))
    if "ask" in plan or "park" in plan:
        if rng.random() < 0.25:
            # It may be told no more than that, also when it goes on and its caller says nothing of it any more.
            found["labels"] = rng.choice(((), ("odd",)))
        found["think"] = rng.choice((0.0, 0.1, 0.6, 3.0))
        found["reply"] = rng.choices(("answer", "cancel", "leave"), (70, 15, 15))[0]


def _skill(rng: random.Random, depth: int, seconds: float, chain: tuple[str, ...]) -> Plan:
    plan: Plan = {}
    if rng.random() < 0.5:
        plan["sleep"] = rng.expovariate(10) if rng.random() < 0.8 else rng.random() * 2
    if depth < 2 and rng.random() < (0.55, 0.4)[depth]:
        plan["calls"] = [call(rng, depth + 1, seconds, chain) for _ in range(rng.choice((1, 1, 2, 3)))]
        plan["gather"] = rng.random() < 0.3
    if rng.random() < 0.5:
        plan["cost"] = rng.randrange(300)
        plan["usd"] = rng.choice((0, 0, 0.0001))
    if rng.random() < 0.1:
        plan["progress"] = 2
    plan["end"] = rng.choices(("value", "raise", "hang", "refuse"), (84, 7, 5, 4))[0]
    return plan


def _odd(rng: random.Random) -> Plan:
    ends = ("value", "twice", "late", "absurd", "rubbish", "hang", "silent", "raise", "failed")
    plan: Plan = {"end": rng.choices(ends, (60, 8, 6, 3, 3, 5, 3, 6, 6))[0]}
    if rng.random() < 0.4:
        plan["sleep"] = rng.expovariate(10)
    if rng.random() < 0.6:
        plan["cost"] = rng.randrange(300)
        plan["usd"] = rng.randrange(200)
    if rng.random() < 0.1:
        plan["progress"] = 3
    return plan


def _acts(rng: random.Random, seconds: float) -> list[Act]:
    acts: list[Act] = []

    def at(most: float = 1.0) -> float:
        return rng.random() * seconds * most

    if rng.random() < 0.3:
        acts.append(Act(at(), "revoke hop"))
    if rng.random() < 0.1:
        acts.append(Act(at(), "revoke txn"))
    if rng.random() < 0.2:
        kind, name = rng.choice(STOPPABLE)
        began = at(0.5)
        acts.append(Act(began, f"revoke {kind}", name))
        if rng.random() < 0.5:
            acts.append(Act(began + 0.5 + rng.random() * seconds, f"reinstate {kind}", name))
    if rng.random() < 0.3:
        acts += [Act(at(), "policies", f"{rng.getrandbits(256):064x}") for _ in range(rng.choice((1, 1, 3)))]
    if rng.random() < 0.07:
        began = at(0.7)
        acts += [
            Act(began, "revoke all", "everything"),
            Act(began + 0.3 + rng.random() * 3, "reinstate all", "everything"),
        ]
    return sorted(acts)
