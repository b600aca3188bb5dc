"""What agents ask of the broker itself."""

from __future__ import annotations

import time
from typing import Any

from remit.link import Link
from remit.run import Run
from remit_schemas import subjects
from remit_schemas.envelope import Request


async def ask_service(
    link: Link,
    name: tuple[str, str],
    args: dict[str, Any],
    *,
    txn: str = subjects.NEW,
    grant: str = "",
    wait: float = 10.0,
) -> Any:
    """Ask a service of the broker itself, such as ``("attach", "put")``. Raises :class:`~remit.errors.Refused`."""
    request = Request(grant=grant, args=args, deadline=int((time.time() + wait) * 1000))
    frames = await link.ask(subjects.request(link.name, txn, "remit", *name), request)
    return await Run(link, f"remit/{name[0]}/{name[1]}", frames, lambda _, __: None).result()
