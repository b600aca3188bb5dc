"""What a call raises: a refusal with the body of the wire, or a tool's own failure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from remit_schemas.errors import Code, Effect, ErrorBody, Refusal, refusal


class Refused(Exception):  # noqa: N818 - a refusal is an answer, not a fault
    """A call was refused or failed. ``body`` is the error body of the wire; its fields are attributes here as well.

    ``effect`` says what may have happened: only after ``none`` is it safe to call again.
    """

    def __init__(self, body: ErrorBody) -> None:
        super().__init__(f"{body.code}: {body.message}" + (f" ({body.ask})" if body.ask else ""))
        self.body = body

    @property
    def code(self) -> Code:
        """Which refusal it is, out of the closed list."""
        return self.body.code

    @property
    def rule(self) -> str:
        """What refused: a rule of a stage, or the ids of policies."""
        return self.body.rule

    @property
    def ask(self) -> str:
        """What to request instead."""
        return self.body.ask

    @property
    def retryable(self) -> bool:
        """Whether the same call may succeed later, and nothing has happened yet."""
        return self.body.retryable and self.body.effect == "none"

    @property
    def retry_after(self) -> float | None:
        """Seconds to wait before calling again, where that is known."""
        return self.body.retry_after

    @property
    def approval_url(self) -> str | None:
        """Where a person can approve this very call."""
        return self.body.approval_url

    @property
    def approval(self) -> str | None:
        """The id of the approval that is waited for: the identical call goes through once somebody has given it."""
        return self.body.approval

    @property
    def effect(self) -> Effect:
        """``none``, ``happened`` or ``unknown``."""
        return self.body.effect

    @property
    def txn(self) -> str | None:
        """The txn of the refusal's record, where there is one."""
        return self.body.txn

    @property
    def hop(self) -> str | None:
        """The hop of the refusal's record, where there is one."""
        return self.body.hop


class ToolFailed(Exception):  # noqa: N818 - the tool ran and says that it failed
    """A tool ran and reports a failure of its own (MCP's ``isError``). ``value`` is its result as it came."""

    def __init__(self, resource: str, value: Any) -> None:
        super().__init__(f"{resource} failed: {text(value)[:500]}")
        self.resource = resource
        self.value = value


class InputNeeded(Exception):  # noqa: N818 - a question is no fault
    """A call asks for an input before it can go on. It is parked: it holds no budget, and waits as long as its caller's own hop.

    ``request`` is what it needs to know, ``resource`` what was called, ``id`` the hop: ``resume`` of whoever made the call takes it.
    """

    def __init__(
        self, resource: str, id: str, request: Any, resume: Callable[..., Any], cancel: Callable[[], Any]
    ) -> None:
        super().__init__(f"{resource} asks for an input: {text(request)[:500]}")
        self.resource, self.id, self.request = resource, id, request
        self._resume, self._cancel = resume, cancel

    def answer(self, value: Any, **wishes: Any) -> Any:
        """Go on with ``value``, and await the result; ``wishes`` are those of a call, such as ``budget`` and ``ttl``.

        Raises as the call itself, also :class:`InputNeeded` again. ``await need.answer(value).start()`` gives a run instead.
        """
        return self._resume(value, **wishes)

    async def cancel(self) -> None:
        """Give it up: the call ends, at what it was charged so far. Best effort."""
        await self._cancel()


def refused(
    code: Code | str,
    message: str,
    *,
    rule: str,
    ask: str = "",
    effect: Effect = "none",
    retry_after: float | None = None,
) -> Refused:
    """A refusal of one's own, to raise from a skill. ``message`` and ``ask`` go to the caller: put no secrets there."""
    return Refused(refusal(Code(code), message, rule=rule, ask=ask, effect=effect, retry_after=retry_after).body)


@contextmanager
def as_refused() -> Iterator[None]:
    """Inside, what the shared rules refuse is raised as :class:`Refused`, so that users meet one type of refusal."""
    try:
        yield
    except Refusal as no:
        raise Refused(no.body) from None


def text(value: Any) -> str:
    """The text of a result: a string as it is, of an MCP tool's result its text blocks, of anything else its JSON."""
    if isinstance(value, str):
        return value
    content = value.get("content") if isinstance(value, dict) else None
    if isinstance(content, list) and all(isinstance(block, dict) for block in content):
        return "\n".join(str(block["text"]) for block in content if block.get("type") == "text" and "text" in block)
    return json.dumps(value, ensure_ascii=False)
