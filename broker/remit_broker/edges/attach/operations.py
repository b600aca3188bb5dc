"""What can be asked of an attached server, as the requests of the protocol."""

from __future__ import annotations

from typing import Any, Final

import mcp_types as types

RESOURCE: Final = "$resource"
PROMPT: Final = "$prompt"
COMPLETE: Final = "$complete"
SUBSCRIBE: Final = "$subscribe"
KINDS: Final = frozenset({RESOURCE, PROMPT, COMPLETE, SUBSCRIBE})


def request_of(op: str, args: dict[str, Any], more: dict[str, Any]) -> Any:
    """The request of MCP for one operation and its arguments."""
    if op == RESOURCE:
        return types.ReadResourceRequest(params=types.ReadResourceRequestParams.model_validate({**args, **more}))
    if op == PROMPT:
        return types.GetPromptRequest(params=types.GetPromptRequestParams.model_validate({**args, **more}))
    if op == SUBSCRIBE:
        return types.SubscribeRequest(params=types.SubscribeRequestParams.model_validate({**args, **more}))
    if op == COMPLETE:
        return types.CompleteRequest(params=types.CompleteRequestParams.model_validate({**args, **more}))
    return types.CallToolRequest(
        params=types.CallToolRequestParams.model_validate({"name": op, "arguments": args, **more})
    )
