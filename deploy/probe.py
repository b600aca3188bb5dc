"""The health check of a callout's container: exit 0 where somebody with these keys is let in on the bus.

python deploy/probe.py STATE
"""

from __future__ import annotations

import asyncio
import sys

from remit_broker.adapters.keyfiles import KeyFiles
from remit_broker.adapters.nats_checks import probe
from remit_broker.config import load


def main(state: str) -> str | None:
    """Why nobody is let in, or None."""
    settings = load(state)
    return asyncio.run(probe(settings.config.bus.url, KeyFiles.open(settings.data)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
