"""What is not drawn but read from a file that the scenario names: a schedule, a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol, TypeVar

from fedkd.errors import UserError
from fedkd.scenario.files import find_file


class OfClients(Protocol):
    """What is for so many clients."""

    @property
    def clients(self) -> int:
        """How many."""


Read = TypeVar("Read", bound=OfClients)


def read_named(
    name: str, clients: int, search: Iterable[Path], parse: Callable[[str], Read], *, key: str
) -> tuple[Read, Path]:
    """Read what a run left or somebody wrote; return it, and where it was found.

    Args:
        name: The JSON file.
        clients: Number of clients N.
        search: The scenario's folders, for a relative path; then the working folder.
        parse: From the file's text.
        key: Of the scenario, for error messages.

    Raises:
        UserError: No such file, or it is not for so many clients, or what `parse` has to say.
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
