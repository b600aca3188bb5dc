"""The first step of `compose.yaml`: draw the keys, write a starter configuration, and write the NATS server's configuration.

Run again it keeps keys and configuration and writes the server's configuration anew. That file holds public keys only, so
the NATS service never sees a secret of the broker.

    python deploy/prepare.py STATE NATS_CONFIG BUS_URL
"""

from __future__ import annotations

import sys
from pathlib import Path

from remit_broker.adapters.keyfiles import KeyFiles
from remit_broker.adapters.nats_config import ServerConfig, render
from remit_broker.adapters.nats_server import public_keys
from remit_broker.config import FILE, load
from remit_broker.starter import write_starter

STORE = "/var/lib/nats"
PORT = 4222
HTTP_PORT = 7480


def main(state: Path, nats_config: Path, bus_url: str) -> None:
    """Prepare the folder ``state`` of the broker and the file ``nats_config`` for a NATS server reached at ``bus_url``."""
    if not (state / FILE).exists():
        starter(state, bus_url)
    settings = load(str(state / FILE))
    keys = KeyFiles.open(settings.data, create=True)
    server = ServerConfig(
        keys=public_keys(keys), store_dir=STORE, host="0.0.0.0", port=PORT, sync=settings.config.bus.sync
    )
    nats_config.write_text(render(server), encoding="utf-8")


def starter(state: Path, bus_url: str) -> None:
    """What `remit init` writes, with the bus outside."""
    file = write_starter(state, "local", HTTP_PORT)
    text = file.read_text(encoding="utf-8")
    before, line, after = text.partition("# url = ")
    if not line:
        raise SystemExit("the starter configuration has no `# url = ` line any more: deploy/prepare.py must follow it")
    file.write_text(f'{before}url = "{bus_url}"\n# url = {after}', encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
