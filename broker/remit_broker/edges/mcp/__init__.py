"""MCP for clients: ``/mcp/<server>`` and ``/mcp`` over streamable HTTP. Every call becomes a hop, decided by the one pipeline.

The wire is handled here as JSON, not through the MCP library: what a proxy does not understand it must not lose, and a session has
to belong to whoever began it (docs/adr/0015-mcp-clients.md says more).
"""
