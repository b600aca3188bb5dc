"""Cases for policies, in TOML files beside them: ``policies/tests/*.toml``, each a list of ``[[case]]``."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from remit_broker.adapters.errors import ConfigError
from remit_broker.core.what_if import Case

FOLDER: Final = "tests"
MAX_FILE: Final = 1 << 20


class Placed(NamedTuple):
    """A case and the file it stands in."""

    where: str
    case: Case


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    case: tuple[dict[str, object], ...] = ()


def read_cases(folder: Path) -> list[Placed]:
    """The cases of a policy folder, in order. Raises :class:`ConfigError` that names file and case."""
    found: list[Placed] = []
    for file in sorted((folder / FOLDER).rglob("*.toml")):
        for number, raw in enumerate(_read(file).case, 1):
            where = f"{file}: case {number}"
            try:
                found.append(Placed(where, msgspec.convert(raw, Case, strict=True)))
            except msgspec.ValidationError as error:
                raise ConfigError(f"{where}: {error}", "docs/policy.md shows what a case may say") from None
    return found


def _read(file: Path) -> _File:
    try:
        if file.stat().st_size > MAX_FILE:
            raise ConfigError(f"{file} is larger than {MAX_FILE} bytes", "split it")
        return msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8")), _File, strict=True)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{file} cannot be read: {error}", "cases are TOML: [[case]] and its keys") from None
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file}: {error}", "write [[case]] for each case") from None
