"""Links of pages to files of the repository that are no pages: the site carries them along."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CARRIED = "repository"
"""Folder of the site that these files lie in."""
COPIED = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Files that are pages of the site, and which."""
LINK = re.compile(r"(?P<head>\]\()(?P<target>[^)\s#]+)(?P<tail>(?:#[^)\s]*)?\))")


def targets(page: str, text: str) -> Iterator[str]:
    """Yield the files that a page links to outside of `docs/`, as paths in the repository.

    Args:
        page: Path of the page in `docs/`.
        text: Its Markdown.
    """
    for found in LINK.finditer(text):
        path = _outside(page, found["target"])
        if path is not None and path not in COPIED:
            yield path


def relinked(page: str, text: str) -> str:
    """Return the Markdown with these links led to where the site has the files."""

    def lead(found: re.Match[str]) -> str:
        path = _outside(page, found["target"])
        if path is None:
            return found[0]
        there = COPIED.get(path, f"{CARRIED}/{path}")
        target = posixpath.relpath(there, posixpath.dirname(page) or ".")
        return f"{found['head']}{target}{found['tail']}"

    return LINK.sub(lead, text)


def _outside(page: str, target: str) -> str | None:
    if "://" in target or target.startswith(("mailto:", "/")):
        return None
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
    if path.startswith("docs/") or not (REPOSITORY / path).is_file():
        return None
    return path
