"""Looking at an MCP server before it is let in, without a broker: ``remit servers scan``.

The protocol is spoken by hand here. A library would mend or hide what is to be seen: noise, wrong ids, answers nobody asked for.
No tool is ever called. ``inbox`` judges every message, ``stdio`` and ``http`` carry them, ``talk`` asks, ``surface`` looks at how an
HTTP server is guarded, ``run`` makes the report.
"""
