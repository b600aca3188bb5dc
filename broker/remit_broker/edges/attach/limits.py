"""Sets resource limits and becomes a command: ``python -I -S limits.py memory=N files=N … -- COMMAND…``.

A script of its own, so that nothing runs between fork and exec in a process with threads. What cannot be set ends it: a server that
is to be limited is not run otherwise.
"""

from __future__ import annotations

import os
import resource
import sys

_OF = {
    "memory": resource.RLIMIT_AS,
    "processes": resource.RLIMIT_NPROC,
    "files": resource.RLIMIT_NOFILE,
    "cpu": resource.RLIMIT_CPU,
    "file_size": resource.RLIMIT_FSIZE,
}


def main(argv: list[str]) -> int:
    """Returns only where the command could not be run."""
    split = argv.index("--")
    command = argv[split + 1 :]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
    word = ""
    try:
        for word in argv[1:split]:
            name, _, value = word.partition("=")
            hard = resource.getrlimit(_OF[name])[1]
            most = int(value) if hard == resource.RLIM_INFINITY else min(int(value), hard)
            resource.setrlimit(_OF[name], (most, most))
    except (KeyError, ValueError, OSError) as error:
        print(f"limits: {word}: {error}", file=sys.stderr)
        return 126
    try:
        os.execvp(command[0], command)  # noqa: S606 - no shell wanted
    except OSError as error:
        print(f"cannot run {command[0]!r}: {error.strerror}", file=sys.stderr)
        return 127


if __name__ == "__main__":
    sys.exit(main(sys.argv))
