"""A bundle: the grants of one chain from its root to a leaf, verified together and offline.

On the bus only the leaf travels, and authority is the leaf alone. A bundle is for evidence: it proves that every
grant in it was narrowed from the one before it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Final

from remit_schemas.claims import actors, labels_within
from remit_schemas.errors import Code, Refusal, refusal
from remit_schemas.grant import Grant, parse, verify, verify_ancestor
from remit_schemas.keys import KeySet

MAX_BUNDLE: Final = 64 * 1024
"""Largest sum of the tokens' lengths, checked before anything is parsed."""


def verify_bundle(
    tokens: Sequence[str],
    keys: KeySet,
    *,
    issuer: str,
    now: float,
    audience: str,
    allowed_cycles: Collection[tuple[str, str]] = frozenset(),
) -> tuple[Grant, ...]:
    """The grants of ``tokens`` (root first), each verified at ``now``, the leaf for ``audience``, every link checked.

    ``allowed_cycles`` are the (caller, callee) pairs that policy permits although the callee already is in the chain.
    Raises TOO_LARGE (``bundle.size``), GRANT_EXPIRED, or GRANT_INVALID with a ``grant.…`` or ``bundle.…`` rule.
    Evidence of the past is verified at the leaf's own ``iat`` and for its own ``aud``.
    """
    _check_size(tokens)
    unverified = [parse(token) for token in tokens]
    ancestors = [verify_ancestor(each, keys, issuer=issuer, now=now) for each in unverified[:-1]]
    grants = (*ancestors, verify(unverified[-1], keys, issuer=issuer, audience=audience, now=now))
    if grants[0].claims.depth != 0:
        raise _refused("bundle.root", "the first grant is not a root")
    for parent, child in pairwise(grants):
        verify_link(parent, child, allowed_cycles)
    if len({grant.jti.hop for grant in grants}) != len(grants):
        raise _refused("bundle.jti", "two grants of a chain belong to one hop")
    return grants


def verify_link(parent: Grant, child: Grant, allowed_cycles: Collection[tuple[str, str]] = frozenset()) -> None:
    """Refuse (GRANT_INVALID, a ``bundle.…`` rule) unless ``child`` was rightly delegated from ``parent``.

    INVARIANT: along a chain nothing grows and the user stays the same (test_every_widening_is_refused).
    """
    for check in (_same_task, _same_line, _not_wider):
        check(parent, child)
    caller, callee = child.chain[1], child.chain[0]
    if callee in child.chain[1:] and (caller, callee) not in allowed_cycles:
        raise _refused("bundle.cycle", f"{callee!r} already is in the chain")


def _check_size(tokens: Sequence[str]) -> None:
    size = sum(map(len, tokens))
    if size > MAX_BUNDLE:
        raise refusal(
            Code.TOO_LARGE, f"a bundle of {size} characters, at most {MAX_BUNDLE} are accepted", rule="bundle.size",
            ask="present the grants of one chain only",
        )  # fmt: skip
    if not tokens:
        raise _refused("bundle.root", "a bundle has at least a root")


def _same_task(parent: Grant, child: Grant) -> None:
    for claim in ("iss", "sub", "tenant", "txn"):
        if getattr(parent.claims, claim) != getattr(child.claims, claim):
            raise _refused(f"bundle.{claim}", f"{claim} differs from the parent's")
    if parent.jti.hop == child.jti.hop:
        raise _refused("bundle.jti", "a grant and its parent belong to one hop")


def _same_line(parent: Grant, child: Grant) -> None:
    actor = child.claims.act
    if actor is None or child.claims.par != parent.digest:
        raise _refused("bundle.par", "par is not the digest of the parent")
    if actor.sub != parent.claims.aud:
        raise _refused("bundle.actor", "the newest actor is not the holder of the parent")
    # Names, not objects: comparing nested structs would recurse.
    if actors(actor.act) != actors(parent.claims.act):
        raise _refused("bundle.act", "the older actors are not those of the parent")
    # Follows from the actors, since a grant's depth is their number; compared because the contract says so.
    if child.claims.depth != parent.claims.depth + 1:
        raise _refused("bundle.depth", "depth is not one more than the parent's")


def _not_wider(parent: Grant, child: Grant) -> None:
    if not child.scope <= parent.scope:
        raise _refused("bundle.scope", "the scope is not within the parent's")
    if not child.claims.budget.within(parent.claims.budget):
        raise _refused("bundle.budget", "the budget is larger than the parent's")
    if child.claims.exp > parent.claims.exp:
        raise _refused("bundle.exp", "exp is later than the parent's")
    if child.claims.max_depth > parent.claims.max_depth:
        raise _refused("bundle.max_depth", "max_depth is larger than the parent's")
    if not labels_within(child.claims.labels, parent.claims.labels):
        raise _refused("bundle.labels", "the ceiling of labels is not within the parent's")


def _refused(rule: str, message: str) -> Refusal:
    return refusal(Code.GRANT_INVALID, message, rule=rule, ask="present the grants of one chain, root first, unchanged")
