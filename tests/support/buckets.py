"""What lies in a key-value bucket, by what the server says of its stream.

``KeyValue.keys()`` of nats-py 2.16 takes a bucket for empty whose first message arrives while it asks how many there are.
"""

from __future__ import annotations

from nats.js import JetStreamContext
from nats.js.errors import KeyValueError, NotFoundError


async def contents(js: JetStreamContext, bucket: str) -> dict[str, bytes]:
    """Every key that has a value; nothing where there is no such bucket."""
    try:
        info = await js.stream_info(f"KV_{bucket}", subjects_filter=">")
    except NotFoundError:
        return {}
    kv = await js.key_value(bucket)
    found: dict[str, bytes] = {}
    for subject in info.state.subjects or {}:
        key = subject.removeprefix(f"$KV.{bucket}.")
        try:
            found[key] = (await kv.get(key)).value or b""
        except KeyValueError:
            continue
    return found
