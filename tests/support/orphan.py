"""A process that starts an embedded server on the folder it is given, says so, and waits to be killed."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from remit_broker.adapters.keyfiles import KeyFiles
from remit_broker.adapters.nats_server import EmbeddedServer, Options


async def main(folder: Path, watch: bool) -> None:
    """Print the server's URL and pid, and never end."""
    async with EmbeddedServer(KeyFiles.open(folder, create=True), Options(watch=watch)) as server:
        print(server.url, server.pid, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2:] == ["--watch"]))
