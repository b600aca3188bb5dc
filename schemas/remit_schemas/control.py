"""What is said about a hop that runs: by its caller on ``ctl.…``, and by the broker to the connection that works on it."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0, le=2**31)]


class Control(msgspec.Struct, frozen=True, omit_defaults=True):
    """One word about a hop. Members that are not known say nothing.

    ``cancel``: nobody waits any more. ``read``: how many frames of output (``progress`` and ``event``) the caller has read.
    ``parts``: how many parts of a result the broker has taken.
    """

    cancel: bool = False
    read: Count | None = None
    parts: Count | None = None


NOTHING: Final = Control()
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Control).decode

CANCEL: Final = _encode(Control(cancel=True))


def encode_control(said: Control) -> bytes:
    """As it travels."""
    return _encode(said)


def parse_control(data: bytes) -> Control:
    """What was said; :data:`NOTHING` where it cannot be read. Never raises."""
    try:
        return _decode(data)
    except (msgspec.DecodeError, RecursionError):
        return NOTHING


class _Whole(msgspec.Struct, frozen=True):
    resume: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    txn: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_whole = msgspec.json.Decoder(_Whole).decode


def goes_on(data: bytes) -> bool:
    """Whether it is no word but what a parked hop goes on with: the request that resumes it, or the dispatch. Never raises."""
    try:
        found = _whole(data)
    except (msgspec.DecodeError, RecursionError):
        return False
    return found.resume is not msgspec.UNSET or found.txn is not msgspec.UNSET
