"""Docstrings announce a block of code by `::`, which Markdown would show: one colon is left."""

from __future__ import annotations

import re
from typing import Any

import griffe


class LiteralBlocks(griffe.Extension):
    """Change what is read of docstrings, before they are shown."""

    def on_object(self, *, obj: griffe.Object, **options: Any) -> None:
        """Leave one colon before a block, and none where it stands alone."""
        if obj.docstring is not None:
            text = re.sub(r"^\s*::$", "", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r"::$", ":", text, flags=re.MULTILINE)
