"""Paths with home folders."""

import os
from pathlib import Path

from fedkd.errors import UserError


def expand_path(path: str | os.PathLike[str], *, key: str | None = None) -> Path:
    """Expand a leading ``~`` or ``~name``; a missing home is a `UserError` at the key."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"must begin with an existing home folder, got '{path}'", key=key) from None
