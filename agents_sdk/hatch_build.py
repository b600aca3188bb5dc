"""Puts ``remit_schemas`` into the distribution ``remit-sdk``.

In a checkout the package lies beside this project, in ``../schemas``, because the broker needs it as well; in a source
distribution it lies inside. Static ``force-include`` paths cannot say "either", and a wheel is built from both places.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "remit_schemas"


class SchemasHook(BuildHookInterface):  # type: ignore[type-arg,unused-ignore]
    """Runs before a wheel and before a source distribution."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the package under its own name. An editable wheel copies nothing: `dev-mode-dirs` names the sources."""
        source = schemas(Path(self.root))
        if version != "editable":
            build_data["force_include"][str(source)] = PACKAGE


def schemas(root: Path) -> Path:
    """The folder of the package: inside an unpacked source distribution, beside the project in a checkout."""
    for place in (root / PACKAGE, root.parent / "schemas" / PACKAGE):
        if (place / "__init__.py").is_file():
            return place
    beside = root.parent / "schemas"
    raise FileNotFoundError(f"{PACKAGE} is neither in {root} nor in {beside}: build from a checkout or an sdist")
