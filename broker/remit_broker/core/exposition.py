"""The metrics of several processes as one text in the format of Prometheus, told apart by a label."""

from __future__ import annotations

import re
from collections.abc import Mapping

_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(\{.*\})?( .*)")


def merged(texts: Mapping[str, str]) -> str:
    """``texts`` by replica. All samples of a metric stand together, as the format wants it."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for replica, text in sorted(texts.items()):
        family = ""
        for line in text.splitlines():
            if line.startswith("# HELP "):
                family = line.split(" ", 3)[2]
                heads.setdefault(family, [])
            if line.startswith("#"):
                if line not in heads.setdefault(family, []):
                    heads[family].append(line)
            elif (found := _SAMPLE.fullmatch(line)) is not None:
                name, labels, rest = found.groups()
                inside = f",{labels[1:-1]}" if labels and labels != "{}" else ""
                samples.setdefault(family, []).append(f'{name}{{replica="{replica}"{inside}}}{rest}')
    lines = [line for family, head in heads.items() for line in (*head, *samples.get(family, ()))]
    return "\n".join(lines) + "\n"
