#!/usr/bin/env python
"""Write the table of each room's door from its stub: edit `fedkd/ROOM/__init__.pyi`, then run this.

A type checker reads the stub. Flower's apps ship no stubs, so `__init__.py` has the same names in a table.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "fedkd"
ATTACH = "__getattr__, __dir__, __all__ = "


def table(stub: str) -> str:
    """Return the call that imports on first use what a stub names."""
    modules: list[str] = []
    names: dict[str, list[str]] = {}
    for node in ast.parse(stub).body:
        if isinstance(node, ast.ImportFrom):
            found = modules if node.module is None else names.setdefault(node.module, [])
            found += [alias.name for alias in node.names]
    return f"{ATTACH}lazy_loader.attach(__name__, {modules!r}, {names!r})\n"


def main() -> None:
    """Write all tables, and lay them out."""
    doors = [stub.with_suffix(".py") for stub in (PACKAGE / "__init__.pyi", *PACKAGE.glob("*/__init__.pyi"))]
    for door in doors:
        text, found, _ = door.read_text(encoding="utf-8").partition(ATTACH)
        assert found, f"{door} attaches nothing"
        door.write_text(text + table(door.with_suffix(".pyi").read_text(encoding="utf-8")), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "ruff", "format", "--quiet", *doors], check=True)


if __name__ == "__main__":
    main()
