"""Files that a scenario names: looked for beside it, then in the working folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fedkd.errors import UserError, described
from fedkd.paths import expanded


def find_file(name: str, search: Iterable[Path], *, key: str) -> Path:
    """Return the file of a name.

    Args:
        name: A path; a relative one is looked for in each folder.
        search: The scenario's folders; then comes the working folder.
        key: Of the scenario, for error messages.

    Raises:
        UserError: There is none, or none can have such a name.
    """
    given = expanded(name, key=key)
    try:
        tried = [given] if given.is_absolute() else [base / given for base in (*search, Path())]
        path = next((candidate for candidate in tried if candidate.is_file()), None)
    except (OSError, ValueError) as error:  # too long, with a NUL in it
        raise UserError(f"is no file that there can be: {described(error)}", key=key) from None
    if path is None:
        places = ", ".join(str(candidate.absolute()) for candidate in tried)
        raise UserError(f"no file '{name}'; looked for {places}", key=key)
    return path
