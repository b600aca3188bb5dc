"""Where labels have got to in a txn. They spread when a record is applied, before anything that the record allows happens.

Whatever a hop says (what its callee sends on, each early frame, its end) has the labels of its node: what was sent to it, what it
brings by its source, and all that has reached its callee in this txn, by whichever hop. Its caller has them from the opening
on, not from the end: so what is released early has left nothing behind. Only what an endorser may lower stays below until the
end says whether it did.
"""

from __future__ import annotations

from msgspec.structs import replace

from remit_broker.core.tree import Fold, Node
from remit_schemas.names import Kind

NONE: frozenset[str] = frozenset()


def kept(kind: Kind, sent: frozenset[str], brings: frozenset[str]) -> frozenset[str]:
    """What stays with a callee of what it is sent. A server is at home in what it brings: that is told by its source each time."""
    return sent if kind == "agent" else sent - brings


def reached(fold: Fold, node: Node, labels: frozenset[str]) -> Fold:
    """The fold in which ``labels`` have reached the callee of ``node``, and thus everybody who may have heard of it since."""
    return _spread(fold, [(node.callee, labels)])


def spoken(fold: Fold, node: Node) -> Fold:
    """The fold in which ``node``, just opened or resumed, may say something: its caller has the labels of that.

    INVARIANT: no frame is released without its labels in the fold of its caller
    (test_what_a_frame_brings_is_on_the_very_next_call).
    """
    return fold if node.parent is None else _spread(fold, [(fold.nodes[node.parent].callee, node.labels - node.lowers)])


def _spread(fold: Fold, waiting: list[tuple[str, frozenset[str]]]) -> Fold:
    """Labels only grow, so this ends; and since nothing is looked at that gained none, nearly always at once."""
    known, nodes = fold.reached, fold.nodes
    while waiting:
        who, labels = waiting.pop()
        new = labels - known.get(who, NONE)
        if not new:
            continue
        known = known.set(who, known.get(who, NONE) | new)
        # INVARIANT: labels cannot be shaken off by using another grant of one's own in the txn
        # (test_another_grant_of_the_same_agent_sheds_no_label).
        for node in [one for one in nodes.values() if one.callee == who and one.state != "closed"]:
            nodes = nodes.set(node.hop, replace(node, labels=node.labels | new))
            if node.parent is not None:
                waiting.append((nodes[node.parent].callee, new - node.lowers))
    if known is fold.reached:
        return fold
    return replace(fold, nodes=nodes, reached=known)
