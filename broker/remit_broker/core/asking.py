"""What an MCP server asks the person for in a form, and what it must not: a secret. Pure.

The protocol (2025-11-25, Elicitation) says that servers must not ask for sensitive information in forms; what a person types there goes
through the client and may stand in its logs and in a model's context. For secrets there is a URL of the server's, or ``[backends]``.
"""

from __future__ import annotations

import re
from typing import Any, Final

from remit_broker.core.scan.schemas import SECRETS, words_of

_WORDS: Final = re.compile(r"[\w-]{1,256}")
_TEXTS: Final = ("title", "description")


def secret_asked(request: Any) -> str:
    """The field of a form that asks for a secret, among all that a server asks; empty where none does."""
    asks = request.get("asks") if isinstance(request, dict) else None
    for question in asks.values() if isinstance(asks, dict) else ():
        if not isinstance(question, dict) or question.get("method") != "elicitation/create":
            continue
        params = question.get("params")
        if isinstance(params, dict) and params.get("mode") != "url" and (field := _field(params)):
            return field
    return ""


def _field(form: dict[str, Any]) -> str:
    schema = form.get("requestedSchema")
    fields = schema.get("properties") if isinstance(schema, dict) else None
    for name, field in fields.items() if isinstance(fields, dict) else ():
        known = field if isinstance(field, dict) else {}
        said = [name, *(str(known.get(key, "")) for key in _TEXTS)]
        # What is chosen from a list is nothing that only the person knows; a text may be what the message asks for.
        free = known.get("type", "string") == "string" and "enum" not in known and "oneOf" not in known
        if free and (
            known.get("format") == "password" or any(_secret(text) for text in (*said, str(form.get("message", ""))))
        ):
            return str(name)[:64]
    return ""


def _secret(text: str) -> bool:
    return any(SECRETS & words_of(word) for word in _WORDS.findall(text))
