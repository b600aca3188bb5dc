"""MCP servers on the bus: a worker runs or reaches one unmodified MCP server and serves its tools as ``mcp/<name>/<tool>``.

``session`` is the MCP side, ``wire`` and ``serve`` the bus side, ``worker`` joins them, ``supervisor`` runs workers for the
servers on the broker's own machine. Nothing is imported here: the MCP library takes longer to load than a broker to start.
"""
