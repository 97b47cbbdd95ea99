"""Paths as people write them."""

import os
from pathlib import Path

from fedkd.errors import UserError


def expand_path(path: str | os.PathLike[str], *, key: str | None = None) -> Path:
    """Return a path with a leading ``~`` or ``~name`` replaced; no such home is a `UserError` at the key."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"must begin with a home folder that there is, got '{path}'", key=key) from None
