"""Runs a command that must not outlive the process that started it, even when that one is killed with SIGKILL.

Started as a script of its own (``python -I -S leash.py PARENT -- COMMAND…``), so that nothing runs between fork and exec in the
broker, where threads would make it unsafe. On Linux the kernel does the watching: prctl(2) PR_SET_PDEATHSIG survives exec, and
this process becomes the command. Elsewhere it stays as a parent that reads a pipe: end of file means the broker is gone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

PR_SET_PDEATHSIG = 1


def become(parent: int, command: list[str]) -> None:
    """Ask the kernel for SIGTERM at the parent's death, then be ``command``. Linux only."""
    import ctypes

    # SIGTERM, not SIGKILL: the server closes its store. The lock on the data folder is held until it has gone.
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    # The parent may have died before the request; then nobody would ever send the signal.
    if os.getppid() == parent:
        os.execv(command[0], command)  # noqa: S606 - no shell wanted


def watch(command: list[str]) -> int:
    """Run ``command`` until it ends, standard input does, or this process is asked to stop; its exit status."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, close_fds=False)  # noqa: S603 - the broker's own command line

    def stop(*_: object) -> None:
        child.terminate()

    def until_end_of_file() -> None:
        while os.read(0, 1):
            pass
        stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    threading.Thread(target=until_end_of_file, daemon=True).start()
    return child.wait()


def main(argv: list[str]) -> int:
    """``leash.py PARENT [--watch] -- COMMAND…``; returns only where the command did not replace this process."""
    split = argv.index("--")
    parent, command = int(argv[1]), argv[split + 1 :]
    os.umask(0o077)  # here, since not every event loop can set it for a child
    if sys.platform == "linux" and "--watch" not in argv[:split]:
        become(parent, command)
        return 1
    return watch(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
