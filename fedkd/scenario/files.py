"""Files that a scenario names: looked for beside it, then in the working folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol, TypeVar

from fedkd.errors import UserError, described
from fedkd.storage.paths import expanded


def find_file(name: str, search: Iterable[Path], *, key: str) -> Path:
    """Return a file; a relative name lies in a folder of the scenario, or in the working folder."""
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


class _OfClients(Protocol):
    @property
    def clients(self) -> int: ...


Read = TypeVar("Read", bound=_OfClients)


def read_file_of_clients(
    name: str, clients: int, search: Iterable[Path], parse: Callable[[str], Read], *, key: str
) -> tuple[Read, Path]:
    """Read a schedule or a graph of N clients from a JSON file; return it, and where it was found.

    A missing file, another number of clients, or an error of `parse` is a `UserError` at the key.
    """
    path = find_file(name, search, key=key)
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}", key=key) from None
    except UserError as error:
        raise UserError(f"{path} is {error.message}", key=key) from None
    if found.clients != clients:
        raise UserError(f"{path} is for {found.clients} clients, data.clients is {clients}", key=key)
    return found, path
