"""The conformance vectors in ``schemas/vectors/``: what another implementation of grants, records and scopes must do.

Whether a case is valid and which rule refuses it is written here by hand; ``tests/conformance/test_vectors.py`` holds the
implementation against it, and the files against a fresh run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from tools.vectors.bundles import bundles
from tools.vectors.grants import grants
from tools.vectors.records import records
from tools.vectors.scopes import names, scopes

FOLDER: Final = Path(__file__).parents[2] / "schemas" / "vectors"

ABOUT: Final = {
    "grants": (
        "Verify each token against jwks and issuer, for the case's audience, at now (Unix seconds). A valid "
        "one gives these claims, this chain (newest actor first) and this digest (what a child names in par); "
        "an invalid one is refused with this code and rule."
    ),
    "bundles": (
        "Verify each list of tokens, root first, against jwks and issuer, the leaf for the case's audience, "
        "at now. allowed_cycles are (caller, callee) pairs."
    ),
    "records": (
        "canonical is the RFC 8785 form of a record without hash, and hash its lower-case hex SHA-256. Of an "
        "invalid chain, seq is the index of the first record at fault and fault the first check that fails "
        "there: hash, then seq, then prev."
    ),
    "scopes": (
        "A scope is a list of details written as pattern{constraints}. covers: is the call permitted; meets: "
        "the normal form of both together, either way round; within: is a within b; malformed: refused as "
        "text."
    ),
    "names": ("A name has exactly one token in a NATS subject; no_token are texts that are no name's token."),
}


def generate() -> dict[str, str]:
    """The text of every file, by name."""
    made = {"grants": grants, "bundles": bundles, "records": records, "scopes": scopes, "names": names}
    return {
        f"{name}.json": json.dumps({"about": ABOUT[name], **make()}, indent=1, ensure_ascii=True) + "\n"
        for name, make in made.items()
    }
