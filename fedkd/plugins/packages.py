"""Optional packages, and the installed versions of required packages."""

import platform
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from types import ModuleType

from fedkd.errors import UserError

NEEDED = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "flwr", "ray", "pydantic", "safetensors")
"""The main requirements, for a source tree without package metadata."""


class MissingPackage(UserError):
    """A package of an extra is not installed."""


def install_hint(extra: str) -> str:
    """Return the command that installs an extra of fedkd from a clone."""
    return f"in a clone of fedkd: pip install '.[{extra}]'"


def require_package(package: str, feature: str, extra: str) -> ModuleType:
    """Import a package of an extra, or raise a `MissingPackage` with the install command."""
    try:
        return import_module(package)
    except ImportError:
        name = package.partition(".")[0]
        raise MissingPackage(f"{feature} needs {name}; {install_hint(extra)}") from None


class Omissions:
    """Collects files that were skipped for lack of a package, for one message."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}

    @contextmanager
    def without(self, file: str) -> Iterator[None]:
        """Skip a file if the block that writes it lacks a package."""
        try:
            yield
        except MissingPackage as error:
            self._reasons[file] = str(error)

    def report(self, tell: Callable[[str], None]) -> None:
        """Report the skipped files, if any, with an install command."""
        if self._reasons:
            tell(f"skipped: {', '.join(self._reasons)}; {next(iter(self._reasons.values()))}")


def dependencies() -> list[str]:
    """Return the names of fedkd's required packages."""
    try:
        asked = [need for need in requires("fedkd") or [] if "extra ==" not in need]
    except PackageNotFoundError:
        asked = []
    names = [re.split(r"[^A-Za-z0-9._-]", need, maxsplit=1)[0] for need in asked]
    return sorted({*names, *NEEDED}, key=str.lower)


def package_versions() -> dict[str, str]:
    """Return the versions of Python, required packages, the system, and the GPU's runtime."""
    from fedkd import __version__

    found = {"fedkd": __version__, "python": platform.python_version(), "platform": platform.platform()}
    torch = sys.modules.get("torch")  # loaded by every run
    cuda = getattr(getattr(torch, "version", None), "cuda", None)
    return found | _of_packages() | ({"cuda": cuda} if isinstance(cuda, str) else {})


@cache
def _of_packages() -> dict[str, str]:
    """Return the packages' versions, cached because reading them is slow."""
    found = {}
    for package in dependencies():
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
