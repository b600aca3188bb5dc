"""``python -m tools.vectors``: write the files."""

from __future__ import annotations

from tools.vectors import FOLDER, generate

FOLDER.mkdir(exist_ok=True)
for name, text in generate().items():
    (FOLDER / name).write_text(text)
