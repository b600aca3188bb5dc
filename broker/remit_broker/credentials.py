"""Credentials of agents and servers: a file only its owner can read; the broker is told nothing but the public key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from remit_broker.adapters.errors import ConfigError
from remit_broker.adapters.keyfiles import new_user_seed
from remit_broker.adapters.private_files import private_folder, read_private, write_private
from remit_broker.core import nkey
from remit_schemas.names import DEFAULT_TENANT, Kind


def credentials_file(
    folder: Path, name: str, kind: Kind, known: Mapping[str, Any], tenant: str = DEFAULT_TENANT
) -> tuple[Path, str]:
    """Draw an nkey and write the credentials file (0600) of ``name``; the path and the public key, which is all that is told."""
    seed = new_user_seed()
    path = folder / f"{name}.json"
    if tenant != DEFAULT_TENANT:
        # First the folder that it stands in: made on the way, others could look into it
        # (test_the_first_agent_of_a_tenant_makes_folders_that_nobody_else_reads).
        private_folder(folder.parent, create=True)
    private_folder(folder, create=True)
    told = {"agent": name, "kind": kind, "tenant": tenant, **known, "nkey_seed": seed}
    write_private(path, json.dumps(told, indent=1).encode())
    return path, nkey.public_of("U", seed)


def move_bus(folder: Path, url: str) -> None:
    """Name ``url`` in the credentials kept in ``folder``: an embedded NATS server may have had to take another port."""
    _tell(folder, "bus", url)


def tell_keys(folder: Path, jwks: Mapping[str, Any]) -> None:
    """Name the published keys in the credentials kept in ``folder``: their holders look there for a key they do not know."""
    # INVARIANT: whoever this machine gave credentials knows the new keys before the first grant is signed with one
    # (test_a_log_over_a_rotation_a_rebuild_and_a_restart).
    _tell(folder, "jwks", jwks)


def _tell(folder: Path, name: str, value: Any) -> None:
    for path in sorted(folder.glob("*.json")):
        try:
            told = json.loads(read_private(path))
        except (ValueError, ConfigError):
            continue  # whoever uses that file is told what is wrong with it
        if isinstance(told, dict) and told.get(name) not in (None, value):
            write_private(path, json.dumps({**told, name: value}, indent=1).encode())
