"""``python -m remit_broker.bench.profiled FILE MODULE WORDS…``: run a module, profiled by processor time.

A clock on the wall would charge a function for what else the machine did meanwhile, and for waiting for the interpreter's lock.
"""

from __future__ import annotations

import cProfile
import runpy
import sys
import time


def main() -> None:
    """Only the first thread is seen: the event loop's."""
    _, where, module, *words = sys.argv
    sys.argv = [module, *words]
    profile = cProfile.Profile(time.thread_time)
    try:
        profile.runcall(runpy.run_module, module, run_name="__main__", alter_sys=True)
    finally:
        profile.dump_stats(where)


if __name__ == "__main__":
    main()
