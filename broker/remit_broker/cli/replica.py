"""One broker process of several: what ``remit up --replicas N`` starts. Its words are the supervisor's, not for people."""

from __future__ import annotations

import sys

import msgspec

from remit_broker.adapters.errors import ConfigError, ServiceError
from remit_broker.cli.common import UNREACHABLE, USAGE, own, run_loop
from remit_broker.cli.logs import set_up as set_up_logging
from remit_broker.cli.printing import say
from remit_broker.cli.running import first_of, settle_down, until_asked_to_stop
from remit_broker.config import Settings, load
from remit_broker.premises import Place
from remit_schemas.errors import Code


async def serve(settings: Settings, place: Place) -> None:
    """Run until asked to stop; one line of JSON says when it takes requests."""
    asked = until_asked_to_stop()
    from remit_broker.app import Broker

    async with Broker(settings, place) as broker:
        settle_down()
        say(broker.ready)
        await first_of(asked, broker.ended)


def main(words: list[str]) -> int:
    """``CONFIG PLACE [--quiet] [--logs=FORMAT]``; the exit codes of every command."""
    file, place, *rest = words
    set_up_logging("--quiet" in rest, "json" if "--logs=json" in rest else "text")
    try:
        run_loop(serve(load(file), msgspec.json.decode(place, type=Place)))
    except ConfigError as wrong:
        gone = isinstance(wrong, ServiceError)
        code = Code.TARGET_UNAVAILABLE if gone else Code.MALFORMED
        say({"error": own(code, "unreachable" if gone else "usage", wrong.message, wrong.ask)})
        return UNREACHABLE if gone else USAGE
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
