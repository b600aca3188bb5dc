"""The first step of `compose.yaml`: keys and a starter configuration for each broker, and the configuration of each NATS server.

The first broker's keys are drawn, the others get the same. Run again it keeps keys and configurations and writes the servers'
configurations anew. Those hold public keys only, so the NATS services never see a secret of the broker.

    python deploy/prepare.py NATS_FOLDER STATE…
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from remit_broker.adapters.key_bundle import export, restore
from remit_broker.adapters.keyfiles import KEYS, KeyFiles
from remit_broker.adapters.nats_config import Cluster, ServerConfig, render
from remit_broker.adapters.nats_server import public_keys
from remit_broker.config import FILE, load
from remit_broker.starter import write_starter

NODES = 3
STORE = "/var/lib/nats"
PORT = 4222
ROUTES = 6222
HTTP_PORT = 7480
BUS = {
    "url": ",".join(f"nats://nats-{node}:{PORT}" for node in range(1, NODES + 1)),
    "replicas": NODES,
    "callout": "process",
}
TRACES = {"endpoint": "http://jaeger:4318", "ui": "http://127.0.0.1:16686"}
"""Jaeger as the brokers reach it, and as people on the machine do."""


def main(nats: Path, states: list[Path]) -> None:
    """Prepare the folder of each broker, and ``n1.conf`` … for the NATS servers in the folder ``nats``."""
    first = states[0]
    for state in states:
        if not (state / FILE).exists():
            starter(state)
    keys = KeyFiles.open(load(str(first)).data, create=True)
    for state in states[1:]:
        share(load(str(first)).data, load(str(state)).data)
    for node in range(1, NODES + 1):
        (nats / f"n{node}.conf").write_text(render(server(keys, node, first)), encoding="utf-8")


def server(keys: KeyFiles, node: int, state: Path) -> ServerConfig:
    """One node. It listens for the others on the address that its own name has in their network only."""
    cluster = Cluster(
        host=f"n{node}.cluster",
        port=ROUTES,
        routes=tuple(f"nats://n{other}.cluster:{ROUTES}" for other in range(1, NODES + 1)),
        advertise=False,
    )
    sync = load(str(state)).config.bus.sync
    return ServerConfig(
        keys=public_keys(keys), store_dir=STORE, host="0.0.0.0", port=PORT, sync=sync, server_name=f"n{node}",
        cluster=cluster,
    )  # fmt: skip


def share(source: Path, target: Path) -> None:
    """Give a data folder without keys those of another one."""
    if (target / KEYS).exists():
        return
    with tempfile.TemporaryDirectory() as folder:
        export(source, Path(folder) / "keys.json")
        restore(target, Path(folder) / "keys.json")


def starter(state: Path) -> None:
    """What `remit init` writes, with the bus and Jaeger outside."""
    file = write_starter(state, "local", HTTP_PORT)
    text = file.read_text(encoding="utf-8")
    head, table, traces = text.partition("\n[traces]\n")
    text = said(head, BUS) + table + said(traces, TRACES)
    file.write_text(text, encoding="utf-8")


def said(text: str, values: Mapping[str, object]) -> str:
    """``text`` with its commented keys set to ``values``."""
    for key, value in values.items():
        before, line, after = text.partition(f"# {key} = ")
        if not line:
            raise SystemExit(f"the starter configuration has no `# {key} = ` line any more: prepare.py must follow it")
        shown = f'"{value}"' if isinstance(value, str) else value
        text = f"{before}{key} = {shown}\n# {key} = {after}"
    return text


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), [Path(word) for word in sys.argv[2:]])
