"""What every callee checks before it works: pure, and the same for an agent and for a server of tools.

A callee acts on a dispatch only after :func:`check_dispatch`. The NATS server already saw to it that nobody but the broker
publishes on ``svc.…``; these checks need nothing but the dispatch, the published keys and a clock, so that a callee does not
have to take the broker's word for who is asking.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Container

from remit_schemas.envelope import VERSION, Dispatch
from remit_schemas.errors import Code, refusal
from remit_schemas.grant import Grant, parse, verify
from remit_schemas.keys import KeySet
from remit_schemas.names import Jti, Kind, is_hop, is_txn, parse_resource
from remit_schemas.subjects import inbox_prefix, reply

_REPLICA = re.compile(r"[A-Za-z0-9_-]{1,64}")


def answer_subject(me: str, dispatch: Dispatch) -> str | None:
    """Where the frames of this dispatch go; None where its ids are not single plain tokens and no answer can be sent."""
    if not (is_txn(dispatch.txn) and is_hop(dispatch.hop) and _REPLICA.fullmatch(dispatch.replica)):
        return None
    return reply(me, dispatch.replica, dispatch.txn, dispatch.hop)


def control_subject(me: str, connection: str, txn: str = "*", hop: str = "*") -> str:
    """Where the broker sends a callee cancellation and input for one hop; with the defaults, the pattern a callee listens to.

    It lies in the private inbox of the connection that ``started`` named, so that nobody but the broker can write there.
    """
    return f"{inbox_prefix(me, connection)}.ctl.{txn}.{hop}"


class Seen:
    """The dispatches that were taken, as ``(txn, hop, n)``, each kept until its deadline; later a repeat is late anyway.

    ``n`` is the number of the grant: a hop that was parked is dispatched once more for each resumption.

    Time is passed in, in Unix milliseconds.
    """

    __slots__ = ("_by_deadline", "_taken")

    def __init__(self) -> None:
        self._taken: set[tuple[str, str, int]] = set()
        self._by_deadline: list[tuple[int, tuple[str, str, int]]] = []

    def __contains__(self, key: object) -> bool:
        return key in self._taken

    def __len__(self) -> int:
        return len(self._taken)

    def take(self, dispatch: Dispatch, now_ms: float) -> None:
        """Remember ``dispatch`` and forget those whose deadline has passed."""
        while self._by_deadline and self._by_deadline[0][0] <= now_ms:
            self._taken.discard(heapq.heappop(self._by_deadline)[1])
        key = _once(dispatch)
        self._taken.add(key)
        heapq.heappush(self._by_deadline, (dispatch.deadline, key))


def check_dispatch(
    dispatch: Dispatch,
    *,
    me: str,
    kind: Kind,
    keys: KeySet,
    issuer: str,
    now: float,
    seen: Container[tuple[str, str, int]],
) -> Grant:
    """The verified grant of a dispatch that ``me`` may act on at ``now`` (Unix seconds).

    Raises, with effect ``none``: MALFORMED (another version, or not addressed to ``me``), DEADLINE_EXCEEDED, DUPLICATE
    (``(txn, hop, n)`` is in ``seen``), GRANT_INVALID or GRANT_EXPIRED, and for a tool OUT_OF_SCOPE. Of these, a callee answers
    neither DEADLINE_EXCEEDED nor DUPLICATE: the first would come too late, the second would be a second answer.
    """
    _addressed(dispatch, me, kind)
    # INVARIANT: nothing is begun at or after the deadline: the broker has closed the hop, or is about to
    # (test_a_dispatch_past_its_deadline_is_dropped).
    if not now * 1000 < dispatch.deadline:
        raise refusal(
            Code.DEADLINE_EXCEEDED,
            "the deadline of this call has passed",
            rule="dispatch.deadline",
            ask="call again with more time",
        )
    # INVARIANT: a hop is worked on at most once for its call and for each input (test_a_repeated_dispatch_is_served_once).
    if _once(dispatch) in seen:
        raise refusal(
            Code.DUPLICATE, "this call was already taken", rule="dispatch.duplicate", ask="wait for its answer"
        )
    # INVARIANT: no work without a grant that names this callee (test_a_dispatch_without_a_genuine_grant_reaches_nothing).
    grant = verify(parse(dispatch.grant), keys, issuer=issuer, audience=me, now=now)
    # INVARIANT: the number of what is dispatched is the grant's, so that no repeat can pass for another resumption
    # (test_a_resumption_under_another_number_than_the_grants_is_refused).
    if grant.jti != _once(dispatch):
        raise refusal(
            Code.GRANT_INVALID,
            "the grant was minted for another hop",
            rule="dispatch.grant",
            ask="send the grant of this very hop",
        )
    # An agent's grant says what it may ask of others, a tool's says what may be asked of it.
    if kind == "mcp" and not grant.scope.covers(dispatch.resource, dispatch.args):
        raise refusal(
            Code.OUT_OF_SCOPE, f"the grant does not cover this call of {dispatch.resource}", rule="dispatch.scope",
            ask="send a grant that covers exactly this call",
        )  # fmt: skip
    return grant


def _once(dispatch: Dispatch) -> Jti:
    """What is dispatched at most once: the grant by its id, ``n`` as the dispatch says it."""
    return Jti(dispatch.txn, dispatch.hop, dispatch.resumed.n if dispatch.resumed else 1)


def _addressed(dispatch: Dispatch, me: str, kind: Kind) -> None:
    if dispatch.v != VERSION:
        raise refusal(
            Code.MALFORMED, f"envelope version {dispatch.v}", rule="envelope.version", ask=f"send v {VERSION}"
        )
    resource = parse_resource(dispatch.resource)
    if (resource.kind, resource.name) != (kind, me):
        raise refusal(
            Code.MALFORMED,
            f"{resource} is not served by {kind} {me}",
            rule="dispatch.resource",
            ask=f"send what is for {me}",
        )
