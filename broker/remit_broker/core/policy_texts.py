"""What a revision of policies is: the digest of all their texts. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from remit_schemas.canonical import canonical, digest


def revision_of(texts: Mapping[str, str]) -> str:
    """SHA-256, in hex, of the canonical JSON of the sorted ``[path, text]`` pairs."""
    return digest(canonical(sorted([name, text] for name, text in texts.items())))
