"""What travels on the bus: one request, one dispatch, and a sequence of frames.

A reply is any number of ``accepted``/``progress``/``event`` frames and exactly one of ``result``, ``error`` or
``input_required``. A callee's first frame is ``started``. A result that is larger than an envelope comes in ``part`` frames
before it, where the caller said that it takes them (:mod:`remit_schemas.parts`).
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from remit_schemas.budget import Budget
from remit_schemas.canonical import loads
from remit_schemas.errors import Code, ErrorBody, refusal
from remit_schemas.scope import Detail

VERSION: Final = 1
MAX_ENVELOPE: Final = 900 * 1024
"""Largest envelope in bytes: the server's 1 MiB ``max_payload`` counts headers too."""

MAX_WINDOW: Final = 1024
"""Most frames of output that may be ahead of their reader: as many as wait for it on the way."""

Positive = Annotated[int, msgspec.Meta(ge=1, le=2**53 - 1)]
Text = Annotated[str, msgspec.Meta(max_length=4096)]
Name = Annotated[str, msgspec.Meta(pattern=r"^([a-z0-9][a-z0-9_.:/-]{0,63}|\*)$")]
"""Of a label of data, or ``*`` for all."""


class Want(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What a caller asks for the child. Everything left out is taken from what the caller holds and the defaults.

    ``scopes`` are resource patterns (RFC 9396 details), ``ttl_ms`` the lifetime in milliseconds, ``max_depth`` absolute,
    ``labels`` the ceiling: which labels of data may reach the callee.
    """

    scopes: tuple[Detail, ...] | None = None
    budget: Budget | None = None
    ttl_ms: Positive | None = None
    max_depth: Annotated[int, msgspec.Meta(ge=0, le=16)] | None = None
    labels: Annotated[tuple[Name, ...], msgspec.Meta(max_length=64)] | None = None


class Trace(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The caller's own trace context (W3C). Kept as a span link; never adopted, never obeyed for sampling."""

    traceparent: Annotated[str, msgspec.Meta(max_length=55)]
    tracestate: Annotated[str, msgspec.Meta(max_length=512)] = ""


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """A call, from a caller to the broker. ``deadline`` is Unix milliseconds, ``key`` an idempotency key.

    ``resume`` is a parked hop that goes on with ``input``; resource and arguments are those of its opening. ``detach`` asks for
    a task of its own in which the caller can make this call. ``parts`` says that the caller takes a result in parts, ``window``
    how many frames of output it takes ahead of what it has said it has read. ``keep`` asks the broker to keep the end for a
    while: whoever holds the same grant finds it by the hop, or by the ``key``, without which nothing is kept. ``meta`` is what an
    MCP client wrote into ``_meta`` for the server: searched and redacted as arguments are, and in no digest.
    """

    v: int = VERSION
    grant: str = ""
    args: dict[str, Any] = {}
    want: Want = Want()
    key: Annotated[str, msgspec.Meta(max_length=128)] | None = None
    deadline: Positive | None = None
    approval: Annotated[str, msgspec.Meta(max_length=128)] | None = None
    trace: Trace | None = None
    parts: bool = False
    window: Annotated[int, msgspec.Meta(ge=1, le=MAX_WINDOW)] | None = None
    keep: bool = False
    resume: Annotated[str, msgspec.Meta(max_length=16)] | None = None
    input: Any = None
    detach: bool = False
    meta: dict[str, Any] = {}


def _version() -> int:
    return VERSION


class Resumed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a parked hop goes on with. ``n`` is the number of its grant, which is dispatched once."""

    n: Positive
    input: Any


class Dispatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """A governed call, from the broker to a callee. Who asks, for whom and within what is in ``grant``.

    ``parts`` is how many bytes of JSON a result may have that comes in parts (0: none may); ``window`` is the caller's.
    ``resumed`` is there where the hop was parked before: it carries the input that the callee had asked for. ``meta`` is what
    the caller's own client wrote for an MCP server.
    """

    # A factory, since only plain defaults are left out: a dispatch always says its version.
    v: int = msgspec.field(default_factory=_version)
    txn: str
    hop: str
    replica: str
    resource: str
    grant: str
    args: dict[str, Any]
    deadline: int
    parts: Annotated[int, msgspec.Meta(ge=0)] = 0
    window: Annotated[int, msgspec.Meta(ge=1, le=MAX_WINDOW)] | None = None
    resumed: Resumed | None = None
    meta: dict[str, Any] = {}


class Accepted(msgspec.Struct, frozen=True, tag="accepted", tag_field="frame", kw_only=True):
    """The hop is open. Cancellation and input go to ``ctl.<caller>.<replica>.<txn>.<hop>``."""

    txn: str
    hop: str
    replica: str


class Started(msgspec.Struct, frozen=True, tag="started", tag_field="frame", kw_only=True):
    """A callee's first frame: the connection whose inbox gets cancellation and input for this hop."""

    connection: str


class Progress(msgspec.Struct, frozen=True, tag="progress", tag_field="frame", omit_defaults=True, kw_only=True):
    """How far the work is, for people."""

    message: Text = ""
    progress: float | None = None
    total: float | None = None


class Event(msgspec.Struct, frozen=True, tag="event", tag_field="frame", kw_only=True):
    """A piece of output that comes before the result."""

    data: Any


class Part(msgspec.Struct, frozen=True, tag="part", tag_field="frame", kw_only=True):
    """A slice of the JSON text of a result's value. ``seq`` counts from 0, without gaps."""

    seq: Annotated[int, msgspec.Meta(ge=0)]
    data: str


class Result(msgspec.Struct, frozen=True, tag="result", tag_field="frame", omit_defaults=True, kw_only=True):
    """The end of a hop that worked. From a callee, ``cost`` is what it used itself; to a caller, what the hop cost in all.

    ``failed`` says that the tool ran and reports a failure of its own (MCP's ``isError``). ``parts`` is how many ``part``
    frames came before it that make up the value; ``value`` is then null.
    """

    value: Any
    cost: Budget | None = None
    failed: bool = False
    parts: Annotated[int, msgspec.Meta(ge=0)] = 0


class Error(msgspec.Struct, frozen=True, tag="error", tag_field="frame", omit_defaults=True, kw_only=True):
    """The end of a hop that was refused or failed."""

    error: ErrorBody
    cost: Budget | None = None


class InputRequired(
    msgspec.Struct, frozen=True, tag="input_required", tag_field="frame", omit_defaults=True, kw_only=True
):
    """The callee needs an input before it can go on: the hop is parked until its caller resumes it.

    From a callee, ``cost`` is what it used itself since it was called or resumed; to a caller, what the hop cost so far in all.
    """

    request: Any
    cost: Budget | None = None


Frame = Accepted | Started | Progress | Event | Part | Result | Error | InputRequired
FINAL: Final = (Result, Error, InputRequired)

encode = msgspec.json.Encoder().encode


class _Framed(msgspec.Struct, frozen=True):
    """A frame as a field: what a struct looks like is worked out once, a union as such at every conversion."""

    it: Frame


def _convert(data: bytes, kind: Any, what: str) -> Any:
    raw = loads(data, max_bytes=MAX_ENVELOPE)
    try:
        if kind is _Framed:
            return msgspec.convert({"it": raw}, _Framed, strict=True).it
        return msgspec.convert(raw, kind, strict=True)
    except (msgspec.ValidationError, ValueError) as error:
        raise refusal(
            Code.MALFORMED,
            f"not a {what}: {str(error).replace('$.it', '$')[:500]}",
            rule=f"envelope.{what}",
            ask="follow schemas/json",
        ) from None


def parse_request(data: bytes) -> Request:
    """An untrusted request. Raises a MALFORMED or TOO_LARGE refusal."""
    request: Request = _convert(data, Request, "request")
    if request.v != VERSION:
        raise refusal(Code.MALFORMED, f"envelope version {request.v}", rule="envelope.version", ask=f"send v {VERSION}")
    return request


def parse_dispatch(data: bytes) -> Dispatch:
    """A dispatch, as a callee receives it. Raises a MALFORMED or TOO_LARGE refusal."""
    dispatch: Dispatch = _convert(data, Dispatch, "dispatch")
    return dispatch


def parse_frame(data: bytes) -> Frame:
    """One untrusted frame. Raises a MALFORMED or TOO_LARGE refusal."""
    frame: Frame = _convert(data, _Framed, "frame")
    return frame
