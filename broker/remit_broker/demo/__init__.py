"""The demonstration: real agents, a real NATS server, a real MCP server that others published; every line it shows happened."""
