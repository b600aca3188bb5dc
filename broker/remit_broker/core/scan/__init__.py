"""What is looked for in an MCP server before it is let in: pure rules over what it said, each finding with what to do.

``finding`` is the form of a finding and of a report, ``definitions`` the rules for tools, ``schemas`` those for their arguments,
``abilities`` what a tool can do, ``surface`` the server as a whole. ``html`` is the report for people.
"""
