"""A txn as the tree of its hops: what each grant holds, has spent and carries, at one point of the sequence.

A :class:`Fold` never changes. Applying a record (:mod:`remit_broker.core.fold`) makes another one that shares all but a
path with it, so an old one stays a valid picture of the moment it was taken at.

Amounts of one node::

    limit    what was held for it from its parent (the root: what the user granted)
    held     what its children that have not ended hold now
    spent    its own call and what its closed children were charged, never more than ``limit``
    overrun  what they reported beyond their holds
    left     limit - held - spent - overrun, never below zero

A parked hop keeps of its hold what it was charged so far: its ``limit`` shrinks to that, and its parent has the rest again. Under
it there may be other parked hops, nothing that runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, Literal, NamedTuple

import msgspec
from immutables import Map

from remit_broker.core.approvals import Approval
from remit_schemas.budget import ZERO, Budget
from remit_schemas.errors import Code, refusal
from remit_schemas.records import Outcome
from remit_schemas.scope import Detail

GRANTS: Final = 4
"""So many of a hop's grants count, the newest ones: a call that is on its way when a grant is renewed is not lost."""

DELEGATE: Final = "$delegate"
"""Stands for the skill of a call that is not sent: the agent as such."""

WHOLE_HOLD: Final[frozenset[Outcome]] = frozenset({"unknown", "cancelled"})
"""Outcomes after which nobody knows what was used, so all that was held is charged."""


class Settlement(NamedTuple):
    """What a parent is charged when a hop closes: ``spent`` out of its hold, ``overrun`` beyond it."""

    spent: Budget
    overrun: Budget


class Node(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One hop of the tree; the root stands for the opening of the txn, its callee is the user's first agent.

    ``seq`` and ``at`` are those of the record that opened it.
    ``n`` is the number of the latest grant minted for it, ``recs`` the hashes of the records that authorised the last grants
    that count, that of the latest last. ``exp`` (of the latest) is Unix seconds, ``deadline`` Unix milliseconds (the root: its
    ``exp``). ``open_children`` maps each child that has not ended to the ``seq`` that opened it. ``labels`` are those of whatever
    it says (:mod:`remit_broker.core.flow`), ``lowers`` those that its result may lose on the way up by its ``endorser``.
    ``passed`` is the overrun that its parent was charged when it parked, ``connection`` the one that parked it, ``by`` the replica
    that opened or resumed it and takes its frames.
    """

    hop: str
    parent: str | None
    caller: str
    callee: str
    resource: str
    seq: int
    at: str
    depth: int
    max_depth: int
    limit: Budget
    spent: Budget
    exp: int
    deadline: int
    recs: tuple[str, ...]
    scope: tuple[Detail, ...]
    by: str = ""
    held: Budget = ZERO
    overrun: Budget = ZERO
    passed: Budget = ZERO
    state: Literal["open", "parked", "closed"] = "open"
    n: int = 1
    labels: frozenset[str] = frozenset()
    endorser: str = ""
    lowers: frozenset[str] = frozenset()
    open_children: Map[str, int] = Map()
    args_digest: str = ""
    connection: str = ""
    outcome: Outcome | None = None
    code: Code | None = None

    @property
    def handed_on(self) -> bool:
        """Whether it was handed on without a call: no replica waits for its end, so none that falls silent ends it."""
        return self.resource.endswith(f"/{DELEGATE}")

    @property
    def rec(self) -> str:
        """The hash of the record that authorised the latest grant."""
        return self.recs[-1]

    def counts(self, n: int, rec: str) -> bool:
        """Whether the ``n``-th grant, authorised by the record ``rec``, is one of the last that count.

        INVARIANT: of what was minted before a resumption nothing counts (test_a_grant_from_before_a_resumption_is_dead).
        """
        back = self.n - n
        return 0 <= back < len(self.recs) and self.recs[-1 - back] == rec

    @property
    def left(self) -> Budget:
        """What may still be held from this node."""
        limit, held, spent, overrun = self.limit, self.held, self.spent, self.overrun
        usd_micros = limit.usd_micros - held.usd_micros - spent.usd_micros - overrun.usd_micros
        tokens = limit.tokens - held.tokens - spent.tokens - overrun.tokens
        calls = limit.calls - held.calls - spent.calls - overrun.calls
        return Budget(usd_micros if usd_micros > 0 else 0, tokens if tokens > 0 else 0, calls if calls > 0 else 0)


class Fold(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A txn after its record ``seq``, whose hash is ``hash`` and whose veiled form has the digest ``veil``.

    ``idem`` maps what may be used once (as the records name it) to the hop that used it; ``revoked``
    holds the hops whose grants were revoked, each of which covers everything beneath it. ``renewals`` counts those of all grants.
    ``roles`` and ``groups`` are the user's, ``issuer``, ``client`` and ``token`` say how an issuer proved the user.
    ``requests`` are those for approvals, by id, ``decisions`` how often somebody said something to one.
    ``reached`` are the labels of all that has reached a principal in this txn; ``continues`` is the hop, as ``<txn>.<hop>``, of the
    task that this one carries on, ``detached`` the tasks that an agent moved out of this one, ``before`` who stood above its agent in
    the tasks that it was detached from.
    """

    tenant: str
    txn: str
    user: str
    root: str
    seq: int
    hash: str
    nodes: Map[str, Node]
    veil: str = ""
    state: Literal["open", "closed"] = "open"
    labels: frozenset[str] = frozenset()
    idem: Map[str, str] = Map()
    revoked: Map[str, str] = Map()
    renewals: int = 0
    roles: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    issuer: str = ""
    client: str = ""
    token: str = ""
    requests: Map[str, Approval] = Map()
    decisions: int = 0
    reached: Map[str, frozenset[str]] = Map()
    continues: str | None = None
    before: tuple[str, ...] = ()
    detached: Map[str, tuple[str, ...]] = Map()

    @property
    def totals(self) -> Node:
        """The root: its ``held``, ``spent`` and ``overrun`` are those of the whole tree."""
        return self.nodes[self.root]

    def is_open(self, hop: str) -> bool:
        """Whether ``hop`` exists and its grants are of use: it neither has ended nor is parked."""
        node = self.nodes.get(hop)
        return node is not None and node.state == "open"

    def stands(self, hop: str) -> bool:
        """Whether ``hop`` exists and has not ended: it is open or parked."""
        node = self.nodes.get(hop)
        return node is not None and node.state != "closed"

    def is_revoked(self, hop: str) -> bool:
        """Whether the grant of ``hop`` or of any of its ancestors was revoked."""
        return bool(self.revoked) and any(node.hop in self.revoked for node in self._upwards(hop))

    def path(self, hop: str) -> tuple[Node, ...]:
        """From the root to ``hop``; empty where there is no such hop."""
        return tuple(self._upwards(hop))[::-1]

    def chain(self, hop: str) -> tuple[str, ...]:
        """The principals from the user's first agent to the callee of ``hop``, those of the tasks before this one included."""
        return (*self.before, *(node.callee for node in self.path(hop)))

    def left(self, hop: str) -> Budget:
        """What may still be held from ``hop``; nothing where it is not open."""
        node = self.nodes.get(hop)
        return node.left if node is not None and node.state == "open" else ZERO

    def children(self, hop: str) -> tuple[Node, ...]:
        """All children of ``hop``, open and closed, in the order in which they were opened. Looks at every node."""
        return tuple(sorted((n for n in self.nodes.values() if n.parent == hop), key=lambda n: n.seq))

    def descendants_open(self, hop: str) -> tuple[str, ...]:
        """The hops beneath ``hop`` that have not ended, each after all beneath itself: the order in which they can be closed."""
        return self._below(self.nodes[hop].open_children)

    def running_below(self, hop: str) -> tuple[str, ...]:
        """What has to end before ``hop`` can be parked, in the order of :meth:`descendants_open`: all but parked children."""
        children = self.nodes[hop].open_children
        return self._below({child: seq for child, seq in children.items() if self.nodes[child].state == "open"})

    def _below(self, children: Mapping[str, int]) -> tuple[str, ...]:
        """``children`` and everything beneath them that has not ended, in post-order."""
        found: list[str] = []
        waiting = sorted(children, key=children.__getitem__)
        # Parents before children, latest child first; reversed, it is the post-order wanted. Never recursive.
        while waiting:
            here = waiting.pop()
            found.append(here)
            opened = self.nodes[here].open_children
            waiting.extend(sorted(opened, key=opened.__getitem__))
        return tuple(reversed(found))

    def _upwards(self, hop: str | None) -> Iterator[Node]:
        while hop is not None and (node := self.nodes.get(hop)) is not None:
            yield node
            hop = node.parent


def open_path(fold: Fold, hop: str) -> tuple[Node, ...]:
    """From the root to ``hop``, when something may be opened under it.

    Raises a refusal: GRANT_INVALID where the txn has no such hop, GRANT_CLOSED, or GRANT_REVOKED.
    """
    path = fold.path(hop)
    if not path:
        raise refusal(
            Code.GRANT_INVALID,
            "the txn has no such hop",
            rule="ledger.unknown-hop",
            ask="a grant issued by this broker",
        )
    if revoked := next((node for node in path if node.hop in fold.revoked), None):
        what = "the whole txn" if revoked.hop == fold.root else f"the grant of hop {revoked.hop}"
        raise refusal(Code.GRANT_REVOKED, f"{what} was revoked", rule="ledger.revoked", ask="a new task from the user")
    if fold.state == "closed" or any(node.state != "open" for node in path):
        what = "the txn" if fold.state == "closed" else "the hop the grant was minted for"
        how = "parked" if path[-1].state == "parked" else "closed"
        raise refusal(Code.GRANT_CLOSED, f"{what} is {how}", rule="ledger.closed", ask="a grant of a hop that is open")
    return path


def settle(fold: Fold, hop: str, cost: Budget, outcome: Outcome) -> Settlement:
    """What ending or parking ``hop`` charges its parent, where the callee reports ``cost`` beside what it was charged before.

    Call it when nothing runs beneath ``hop``: what its parked children were charged stays in the charge. For the root it gives
    what ``txn.closed`` states.
    """
    node = fold.nodes[hop]
    used, free = node.spent + cost, node.limit.minus(node.held)
    # INVARIANT: no more leaves a hold than was put into it (test_fold: held + spent never exceeds a limit).
    whole = outcome in WHOLE_HOLD and node.parent is not None
    spent = node.limit if whole else used.meet(free) + node.held
    return Settlement(spent, node.overrun + used.minus(free))
