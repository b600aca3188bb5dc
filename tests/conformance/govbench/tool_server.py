"""An MCP server (stdio) with the tools that are named as arguments. Each takes anything and does nothing."""

from __future__ import annotations

import sys

from mcp.server.mcpserver import MCPServer

server = MCPServer("tools", version="1")


def work() -> str:
    """Do it."""
    return "done"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        server.add_tool(work, name=name)
    server.run("stdio")
