"""Registries of built-in parts and plug-ins.

A scenario names a plug-in in one of three ways:

- ``"pkg.mod:Name"``: an installed module, or one beside the scenario;
- a name that a module registers (`fedkd.register`), if the scenario lists the module in ``plugins``;
- the name of an installed package's entry point, e.g. in its ``pyproject.toml``::

      [project.entry-points."fedkd.strategies"]
      boldest = "my_package.boldest:Boldest"
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from fedkd.errors import FedkdError, UserError, blaming, described, did_you_mean
from fedkd.plugins.outline import Outline

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

Part = TypeVar("Part", bound=Callable[..., Any])


class Registry:
    """The parts of one kind by name, imported on demand.

    `builtin` maps names to ``"module:attribute"``, and `aliases` maps other names to names. `absent` maps
    names of missing parts to advice. `group` is an entry-point group, e.g. ``"fedkd.models"``.
    """

    def __init__(
        self,
        kind: str,
        builtin: Mapping[str, str],
        group: str,
        aliases: Mapping[str, str] | None = None,
        absent: Mapping[str, str] | None = None,
    ) -> None:
        self.kind = kind
        self.group = group
        self.aliases = dict(aliases or {})
        self._builtin = dict(builtin)
        self._absent = {_plain(name): sentence for name, sentence in (absent or {}).items()}
        self._spelled = {_plain(name): name for name in builtin}
        self._spelled |= {_plain(alias): name for alias, name in self.aliases.items()}
        self._registered: dict[str, Any] = {}

    @property
    def builtin(self) -> tuple[str, ...]:
        """Names of built-in parts, in listed order."""
        return tuple(self._builtin)

    def names(self) -> list[str]:
        """Return the built-in names in listed order, then those of plug-ins."""
        return list(dict.fromkeys([*self._builtin, *self._registered, *sorted(self._installed)]))

    def canonical(self, name: str) -> str:
        """Return the canonical name of a part, given another spelling or an alias."""
        if name in self._builtin or name in self._registered or name in self._installed:
            return name
        return self._spelled.get(_plain(name), name)

    def register(self, name: str) -> Callable[[Part], Part]:
        """Return a decorator that registers a part; a repeated import replaces the part."""
        if not isinstance(name, str) or not name or ":" in name:
            raise UserError(f"the name of a {self.kind} must be a string without ':', got {name!r}")

        def decorate(part: Part) -> Part:
            former = self._registered.get(name)
            if name in self._builtin or (former is not None and _origin(former) != _origin(part)):
                two = f"{self._builtin.get(name) or _origin(former)} and {_origin(part)}"
                raise UserError(f"two {self.kind}s named '{name}': {two}; rename the latter")
            self._registered[name] = part
            return part

        return decorate

    def load(self, name: str, search: Sequence[str | Path] = ()) -> Any:
        """Return the part `name`; ``.py`` files in `search` come before installed packages."""
        self.check(name)
        if name in self._builtin:
            return load_object(self._builtin[name])
        if name in self._registered:
            return self._registered[name]
        if name in self._installed:
            (entry,) = self._installed[name]
            return load_object(f"{entry.module}:{entry.attr}")
        return load_object(name, search)

    def outline(self, name: str) -> Any:
        """Return the outline of a built-in part, which is not imported, or the part of a plug-in."""
        self.check(name)
        return Outline(self._builtin[name]) if name in self._builtin else self.load(name)

    def check(self, name: str) -> None:
        """Raise a `UserError` unless `name` is one known part or has the form ``"module:Name"``."""
        if ":" in name:
            return
        claims = [_declared(entry) for entry in self._installed.get(name, ())]
        if name in self._registered:
            claims.insert(0, _origin(self._registered[name]))
        if name in self._builtin:
            claims.insert(0, self._builtin[name])
        if not claims:
            advice = self._absent.get(_plain(name)) or did_you_mean(name, [*self.names(), *self.aliases])
            own = f'(a plug-in {self.kind} is "module:Name")'
            raise UserError(f"no {self.kind} named '{name}'; {advice} {own}")
        if len(claims) > 1:
            advice = 'rename one, uninstall its package, or use "module:Name"'
            raise UserError(f"two {self.kind}s named '{name}': {' and '.join(claims)}; {advice}")

    @cached_property
    def _installed(self) -> dict[str, list[EntryPoint]]:
        from importlib.metadata import entry_points

        found: dict[str, list[EntryPoint]] = {}
        for entry in entry_points(group=self.group):
            found.setdefault(entry.name, []).append(entry)
        for entries in found.values():
            entries.sort(key=_declared)
        return found


def import_plugins(modules: Sequence[str], search: Sequence[str | Path]) -> None:
    """Import the modules in a scenario's ``plugins``, which register their parts."""
    for index, module in enumerate(modules):
        with blaming(key=f"plugins.{index}"):
            _import(module, search)


def load_object(reference: str, search: Iterable[str | Path] = ()) -> Any:
    """Import ``"pkg.mod:Name"``; a file ``pkg/mod.py`` in a `search` folder comes first."""
    module_name, _, attribute = reference.partition(":")
    if not module_name or not attribute:
        raise UserError(f"'{reference}' is not of the form \"package.module:Name\"")
    module = _import(module_name, search)
    target: Any = module
    for part in attribute.split("."):
        if not hasattr(target, part):
            own = [
                name
                for name, value in vars(module).items()
                if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
            ]
            raise UserError(f"module '{module_name}' has no '{attribute}'; {did_you_mean(attribute, own)}")
        target = getattr(target, part)
    return target


@contextmanager
def contain_plugin() -> Iterator[None]:
    """Turn exits of a plug-in's code into ordinary exceptions; the block must not ``yield``."""
    try:
        yield
    except Exception:
        raise
    except SystemExit as error:
        name = "os._exit" if isinstance(error, _SuddenEnd) else "sys.exit"
        raise RuntimeError(f"it called {name}({error.code!r})") from error
    except BaseException as error:
        if type(error) is KeyboardInterrupt:  # Python's own class, not a subclass
            raise
        raise RuntimeError(f"it raised {described(error)}") from error


@contextmanager
def plugin_call(what: str, key: str, when: str = "") -> Iterator[None]:
    """Turn a plug-in's exception into a `UserError`: `what`, "raised", the exception, `when`."""
    try:
        with contain_plugin():
            yield
    except FedkdError:
        raise
    except Exception as error:
        raise UserError(f"{what} raised {described(error)}{when}", key=key) from error


class _SuddenEnd(SystemExit):
    """A plug-in called `os._exit`."""


@contextmanager
def forbid_os_exit() -> Iterator[None]:
    """Make `os._exit` raise in this process (not in forks): it would end the run silently."""
    real, owner = os._exit, os.getpid()

    def refuse(status: int) -> NoReturn:
        if os.getpid() != owner:
            real(status)
        raise _SuddenEnd(status)

    os._exit = refuse
    try:
        yield
    finally:
        os._exit = real


def module_path(module_name: str) -> Path:
    """Return the path of the module ``pkg.mod`` in its folder: ``pkg/mod.py``."""
    return Path(f"{module_name.replace('.', '/')}.py")


def _import(module_name: str, search: Iterable[str | Path]) -> Any:
    try:
        with contain_plugin():
            return _module_from_folders(module_name, search) or importlib.import_module(module_name)
    except UserError:  # raised on purpose by the module
        raise
    except ModuleNotFoundError as error:
        raise UserError(f"cannot import '{module_name}': {error}") from error
    except Exception as error:
        raise UserError(f"importing '{module_name}' raised {described(error)}") from error


def _module_from_folders(module_name: str, search: Iterable[str | Path]) -> Any | None:
    relative = module_path(module_name)
    for folder in search:
        path = Path(folder).resolve() / relative
        if not path.is_file():
            continue
        loaded = sys.modules.get(module_name)
        if loaded is not None and getattr(loaded, "__file__", None) == str(path):
            return loaded
        # Append: a user's random.py must not hide that of the standard library.
        if str(Path(folder).resolve()) not in sys.path:
            sys.path.append(str(Path(folder).resolve()))
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            sys.modules.pop(module_name, None)
            if loaded is not None:
                sys.modules[module_name] = loaded
            raise
        return module
    return None


def _plain(name: str) -> str:
    """Return a name without case, hyphens, underscores and spaces."""
    return "".join(letter for letter in name.casefold() if letter not in "-_ ")


def _origin(part: Any) -> str:
    return f"{getattr(part, '__module__', '?')}:{getattr(part, '__qualname__', repr(part))}"


def _declared(entry: EntryPoint) -> str:
    return f"{entry.value} of the package '{entry.dist.name if entry.dist else '?'}'"
