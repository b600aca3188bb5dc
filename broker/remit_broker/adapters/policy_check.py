"""Everything that is wrong with a policy folder, at once: what ``remit policy check`` says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from remit_broker.adapters.cedar import schema
from remit_broker.adapters.cedar_source import Source, look_through, read_folder
from remit_broker.adapters.errors import ConfigError
from remit_broker.adapters.policy_cases import read_cases
from remit_broker.core.policy_lint import Written, lint
from remit_broker.core.policy_texts import revision_of

_WHERE = re.compile(r"^(.*\.(?:cedar|toml)(?::\d+|: case \d+)?): (.*)$", re.DOTALL)


def checked(folder: Path) -> dict[str, Any]:
    """``ok``, ``policies``, ``revision`` and ``findings`` (``where``, ``policy``, ``level``, ``what``, ``ask``). Never raises for
    what is wrong with policies: that is what it tells.
    """
    findings: list[dict[str, str]] = []
    sources: list[Source] = []
    revision = ""
    try:
        texts = read_folder(folder)
        sources, wrong = look_through(folder, texts, schema())
        findings += [_wrong(bad) for bad in wrong]
        if not wrong:
            revision = revision_of(texts)
    except ConfigError as bad:
        findings.append(_wrong(bad))
    findings += [found._asdict() for found in lint(map(_written, sources))]
    try:
        read_cases(folder)
    except ConfigError as bad:
        findings.append(_wrong(bad))
    ok = not any(found["level"] == "error" for found in findings)
    return {"ok": ok, "policies": len(sources), "revision": revision, "findings": findings}


def _written(source: Source) -> Written:
    return Written(source.where, " ".join(source.within).strip(), source.rule, source.body)


def _wrong(bad: ConfigError) -> dict[str, str]:
    placed = _WHERE.match(bad.message)
    where, what = (placed[1], placed[2]) if placed else ("", bad.message)
    return {"where": where, "policy": "", "level": "error", "what": what, "ask": bad.ask}
