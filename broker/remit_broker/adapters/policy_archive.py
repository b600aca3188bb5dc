"""Every set of policies that was in force, by its revision: what the rules that a record names said then.

A revision is the SHA-256 of the texts, so what is kept proves itself, and evidence can show it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from remit_broker.adapters.private_files import private_folder, read_private, write_private
from remit_broker.core.policy_texts import revision_of

FOLDER: Final = "policies"
MAX_BYTES: Final = 16 * 1024 * 1024
OF_TENANTS: Final = "tenant/"
"""Where the policies of single tenants begin."""


class PolicyArchive:
    """Files ``<revision>.json`` in one folder of the data folder. A broker of the same bus that saw another set has another file."""

    def __init__(self, data: Path) -> None:
        self._folder = private_folder(data / FOLDER, create=True)

    def keep(self, texts: Mapping[str, str]) -> None:
        """Write a set down, if that was not done."""
        path = self._folder / f"{revision_of(texts)}.json"
        if not path.exists():
            write_private(path, json.dumps(dict(sorted(texts.items())), ensure_ascii=False).encode())

    def texts(self, revisions: Iterable[str], tenant: str) -> dict[str, dict[str, str]]:
        """The sets that are kept, by revision. One in which other tenants have policies is not shown: it can be proved only whole."""
        found = {}
        for revision in dict.fromkeys(revisions):
            path = self._folder / f"{revision}.json"
            if not revision.isalnum() or not path.is_file():
                continue
            texts = json.loads(read_private(path, MAX_BYTES))
            # INVARIANT: evidence tells nothing of other tenants (test_policies_of_other_tenants_are_in_no_evidence).
            if all(not name.startswith(OF_TENANTS) or name.startswith(f"{OF_TENANTS}{tenant}/") for name in texts):
                found[revision] = texts
        return found
