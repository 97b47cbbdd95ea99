"""Classes and functions as their source declares them, so that lists import no module for them."""

import ast
import importlib.util
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path


class Outline:
    """The source of a class or function ``"package.module:name"``; nothing is imported."""

    def __init__(self, reference: str) -> None:
        self._module, _, self.name = reference.partition(":")
        found = (node for node in _parsed(self._module)[1].body if getattr(node, "name", "") == self.name)
        node = next(found)
        assert isinstance(node, ast.ClassDef | ast.FunctionDef)
        self._node = node
        self.__doc__ = ast.get_docstring(node)

    def lineage(self) -> Iterator["Outline"]:
        """Yield the class, then its bases within the package, depth first."""
        yield self
        for base in self._node.bases if isinstance(self._node, ast.ClassDef) else ():
            if isinstance(base, ast.Name) and (found := find_outline(self._module, base.id)):
                yield from found.lineage()

    def members(self) -> dict[str, ast.stmt]:
        """Return the methods and annotated fields in the body of the class."""
        return {name: node for node in self._node.body if (name := _name(node))}

    def signature(self) -> inspect.Signature:
        """Return the parameters of the function, except ``*args`` and ``**args``; defaults are literals."""
        assert isinstance(self._node, ast.FunctionDef)
        return inspect.Signature(list(_parameters(self._node.args)))


def find_outline(module: str, name: str) -> Outline | None:
    """Return the outline of a class that a module defines or imports; None: it is of another package."""
    file, tree = _parsed(module)
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return Outline(f"{module}:{name}")
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            above = node.level - (file.name == "__init__.py")
            folder = module.rsplit(".", above)[0] if above > 0 else module if node.level else ""
            origin = ".".join(part for part in (folder, node.module) if part)
            same = origin.partition(".")[0] == module.partition(".")[0]
            return find_outline(origin, name) if same else None
    return None


def public_names(module: str) -> list[str]:
    """Return ``__all__`` of a module."""
    declared = (node for node in _parsed(module)[1].body if isinstance(node, ast.Assign))
    return next(
        ast.literal_eval(node.value) for node in declared if ast.unparse(node.targets[0]) == "__all__"
    )


@cache
def _parsed(module: str) -> tuple[Path, ast.Module]:
    package, *inner = module.split(".")
    spec = importlib.util.find_spec(package)  # of a module inside, it would import the package
    assert spec is not None and spec.submodule_search_locations
    path = Path(next(iter(spec.submodule_search_locations)), *inner)
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return file, ast.parse(file.read_text(encoding="utf-8"))


def _name(node: ast.stmt) -> str:
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return node.target.id
    return getattr(node, "name", "")


def _parameters(args: ast.arguments) -> Iterator[inspect.Parameter]:
    by_place = [*args.posonlyargs, *args.args]
    missing = [None] * (len(by_place) - len(args.defaults))
    defaults = [*missing, *args.defaults, *args.kw_defaults]
    for place, (arg, default) in enumerate(zip([*by_place, *args.kwonlyargs], defaults, strict=True)):
        by_name = place >= len(by_place)
        kind = inspect.Parameter.KEYWORD_ONLY if by_name else inspect.Parameter.POSITIONAL_OR_KEYWORD
        value = inspect.Parameter.empty if default is None else ast.literal_eval(default)
        yield inspect.Parameter(arg.arg, kind, default=value)
