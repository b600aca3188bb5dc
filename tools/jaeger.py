"""`make jaeger`: a real Jaeger, built from its Go module, for the test that compares its traces with the ledger.

Jaeger's module path has no `/v2`, so Go knows its releases v2.x by no name. Up to v2.13.0 each of them is the same commit as a
v1 release, which Go does know: v1.76.0 is v2.13.0, and `cmd/jaeger` in it is Jaeger v2. It is built with the libraries its own
`go.mod` names; Go checks every one of them against its checksum database. The result stays in the user's cache.

    python -m tools.jaeger            build it, unless it is there
    python -m tools.jaeger --where    only say where it is or would be
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

MODULE: Final = "github.com/jaegertracing/jaeger"
MODULE_VERSION: Final = "v1.76.0"
VERSION: Final = "2.13.0"
REPLACED: Final = "github.com/Shopify/sarama=github.com/Shopify/sarama@v1.33.0"
"""Stands in Jaeger's own go.mod, where it counts for its own build only."""


def binary() -> Path:
    """Where it is, or would be."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "remit" / f"jaeger-v{VERSION}"


def find_go() -> str | None:
    """The Go compiler, if there is one."""
    return shutil.which("go") or shutil.which("/usr/local/go/bin/go")


def build(go: str) -> Path:
    """Build it. Raises ``CalledProcessError``."""
    target = binary()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "jaeger"
        environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=mod"}
        for words in (
            ["mod", "init", "remit/jaeger"],
            ["mod", "edit", "-replace", REPLACED],
            ["get", f"{MODULE}@{MODULE_VERSION}"],
            ["build", "-trimpath", "-ldflags", "-s -w", "-o", str(made), f"{MODULE}/cmd/jaeger"],
        ):
            subprocess.run([go, *words], cwd=folder, env=environment, check=True)
        part = target.with_suffix(".part")
        shutil.copy2(made, part)
        part.replace(target)
    return target


def main(words: list[str]) -> int:
    """The exit status."""
    if "--where" in words or binary().is_file():
        print(binary())
        return 0
    if (go := find_go()) is None:
        print("there is no Go on this machine: install it, or do without the comparison", file=sys.stderr)
        return 1
    print(build(go))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
