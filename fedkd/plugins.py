"""Names to objects: the registries of built-in parts, and ``"pkg.mod:Name"`` for a user's own."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedkd.errors import UserError, did_you_mean


class Registry:
    """Built-in parts of one kind, imported only when asked for.

    Args:
        kind: Singular name used in messages, e.g. ``"model"``.
        builtin: Name to ``"module:attribute"``.
    """

    def __init__(self, kind: str, builtin: Mapping[str, str]) -> None:
        self.kind = kind
        self._builtin = dict(builtin)

    def names(self) -> list[str]:
        """Return the built-in names in the order they were listed."""
        return list(self._builtin)

    def load(self, name: str, search: Sequence[str | Path] = ()) -> Any:
        """Return the object called `name`.

        Args:
            name: A built-in name, or ``"pkg.mod:Name"``.
            search: Folders whose ``.py`` files may be named, tried before installed packages.

        Raises:
            UserError: No such name, module or attribute.
        """
        self.check(name)
        if name in self._builtin:
            return load_object(self._builtin[name])
        return load_object(name, search)

    def check(self, name: str) -> None:
        """Check that `name` is built in or looks like ``"module:Name"``, importing nothing.

        Raises:
            UserError: It is neither.
        """
        if name not in self._builtin and ":" not in name:
            raise UserError(
                f"no {self.kind} named '{name}'; {did_you_mean(name, self._builtin)}"
                f' (a {self.kind} of your own is "module:Name")'
            )


def load_object(reference: str, search: Iterable[str | Path] = ()) -> Any:
    """Import ``"pkg.mod:Name"``, looking first for a file ``pkg/mod.py`` in the `search` folders.

    Raises:
        UserError: The reference is malformed, or its module or attribute does not exist or fails to import.
    """
    module_name, _, attribute = reference.partition(":")
    if not module_name or not attribute:
        raise UserError(f"'{reference}' is not of the form \"package.module:Name\"")
    try:
        module = _module_from_folders(module_name, search) or importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(f"cannot import '{reference}': {error}") from error
    except Exception as error:
        raise UserError(f"importing '{module_name}' raised {type(error).__name__}: {error}") from error
    target: Any = module
    for part in attribute.split("."):
        if not hasattr(target, part):
            public = [name for name in vars(module) if not name.startswith("_")]
            raise UserError(f"module '{module_name}' has no '{attribute}'; {did_you_mean(attribute, public)}")
        target = getattr(target, part)
    return target


def _module_from_folders(module_name: str, search: Iterable[str | Path]) -> Any | None:
    relative = Path(*module_name.split(".")).with_suffix(".py")
    for folder in search:
        path = Path(folder).resolve() / relative
        if not path.is_file():
            continue
        loaded = sys.modules.get(module_name)
        if loaded is not None and getattr(loaded, "__file__", None) == str(path):
            return loaded
        # Appended, never put first: a user's random.py must not hide the standard library's.
        if str(Path(folder).resolve()) not in sys.path:
            sys.path.append(str(Path(folder).resolve()))
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        previous = sys.modules.get(module_name)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            if previous is None:
                sys.modules.pop(module_name, None)
            else:
                sys.modules[module_name] = previous
            raise
        return module
    return None
