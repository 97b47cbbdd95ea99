"""What the site's builder, MkDocs, is told of pages that are made, and of files that pages link to."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY / "scripts"))
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

from reference import formulas, outside  # noqa: E402
from reference.pages import PAGES  # noqa: E402


def on_files(files: Files, *, config: Any) -> Files:
    """Add what is made, what lies elsewhere, and what pages link to."""
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of what Flower imports
        made = {page: make() for page, make in PAGES.items()}
    for path, page in outside.COPIED.items():
        made[page] = (REPOSITORY / path).read_text(encoding="utf-8").replace("](docs/", "](")
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    linked = {
        target
        for file in files.documentation_pages()
        for target in outside.targets(file.src_uri, file.content_string)
    }
    for target in sorted(linked):
        carried = f"{outside.CARRIED}/{target}"
        files.append(File.generated(config, carried, abs_src_path=str(REPOSITORY / target)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Lead links out of `docs/` to what the site carries along."""
    return outside.relinked(page.file.src_uri, markdown)


def on_page_content(html: str, *, page: Any, config: Any, files: Files) -> str:
    """Draw formulas."""
    return formulas.drawn(html)
