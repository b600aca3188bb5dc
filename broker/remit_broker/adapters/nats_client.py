"""nats-py, hardened against what an agent may put on the wire.

The NATS server passes subjects and headers on as bytes: whatever holds no space, tab or line end is a subject to it. nats-py
2.16 ends its reading, and with it everything the broker hears, at the first message whose subject, reply or header it cannot
decode; and it takes other white space (vertical tab, form feed) for the space between two fields, which makes one message
look like another subscription's, or the whole connection like a broken one. Each could be sent by any agent, again and again.
"""

from __future__ import annotations

import re
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.protocol import parser

# The fields of a line end at a space or a tab (NATS client protocol, MSG and HMSG), and at nothing else.
# INVARIANT: nothing an agent publishes is read as something else (test_no_bytes_on_the_wire_cut_the_broker_off).
parser.MSG_RE = re.compile(rb"\AMSG[ \t]+([^ \t\r\n]+)[ \t]+(\d+)[ \t]+(([^ \t\r\n]+)[ \t]+)?(\d+)\r\n")
parser.HMSG_RE = re.compile(rb"\AHMSG[ \t]+([^ \t\r\n]+)[ \t]+(\d+)[ \t]+(([^ \t\r\n]+)[ \t]+)?(\d+)[ \t]+(\d+)\r\n")


class HardenedClient(Client):
    """A client that drops a message it cannot read, and reads on."""

    async def _process_headers(self, headers: Any) -> dict[str, str] | None:
        try:
            found: dict[str, str] | None = await super()._process_headers(headers)
        except Exception:
            # Headers of agents mean nothing to the broker, so those that cannot be read are as good as none.
            return None
        return found

    def _build_message(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: Any) -> Msg | None:
        try:
            built: Msg = super()._build_message(sid, subject, reply, data, headers)
        except UnicodeDecodeError:
            # No name, kind or inbox of this bus is anything but ASCII.
            return None
        return built
