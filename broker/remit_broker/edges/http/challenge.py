"""What an MCP client without a token is told: where it gets one (RFC 9728 §5.1, RFC 6750 §3)."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

METADATA: Final = "/.well-known/oauth-protected-resource"


def challenge(base: str, path: str = "/mcp", error: str = "", scope: str = "") -> str:
    """The value of ``WWW-Authenticate`` for a request of ``path`` (such as ``/mcp/git``) at ``base``, the URL clients use.

    ``error`` is ``invalid_token`` where there was a token (401) or ``insufficient_scope`` (403), with the ``scope`` to ask for.
    """
    said = [f'resource_metadata="{base.rstrip("/")}{METADATA}{quote(path, safe="/")}"']
    if error:
        said.append(f'error="{error}"')
    if scope:
        said.append(f'scope="{"".join(c for c in scope if c not in chr(34) + chr(92))}"')
    return "Bearer " + ", ".join(said)
