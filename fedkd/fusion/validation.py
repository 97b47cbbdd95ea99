"""Checks of arrays from plug-in strategies."""

from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from fedkd.errors import UserError


def check_arrays(given: Any, what: str) -> None:
    """Raise a TypeError about `what` unless `given` maps names to arrays of numbers."""
    if not isinstance(given, Mapping):
        raise TypeError(f"{what} is a {type(given).__name__}; must be a dict of NumPy arrays by name")
    for name, values in given.items():
        if not isinstance(name, str):
            raise TypeError(f"{what} has a key {name!r}; must be a name")
        if not isinstance(values, np.ndarray | np.generic) or values.dtype.kind not in "biuf":
            kind = values.dtype if isinstance(values, np.ndarray) else type(values).__name__
            raise TypeError(f"{what} has {name} of type {kind}; must be a NumPy array of numbers")


class ReceivedGuidance(dict[str, np.ndarray]):
    """Guidance on a client; access to a missing array raises an error with its name."""

    def __missing__(self, name: str) -> NoReturn:
        raise UserError(
            f"guidance is refused: array {name} is missing; guidance has {', '.join(self) or 'nothing'}"
        )
