"""Versions on a node; sent as source, it needs only the standard library."""

from typing import Any


def look_around(packages: list[str], modules: list[str]) -> dict[str, Any]:
    """Return versions of `packages`, and SHA-256 of `fedkd` and the `modules`; None: not there."""
    import hashlib
    import importlib.metadata
    import importlib.util
    import platform
    from pathlib import Path

    def file_of(module: str) -> Path | None:
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, AttributeError, ValueError):
            return None
        return Path(spec.origin) if spec is not None and spec.origin and Path(spec.origin).is_file() else None

    def version(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    def digest(files: list[Path], folder: Path) -> str:
        found = hashlib.sha256()
        for file in sorted(files):
            found.update(f"{file.relative_to(folder).as_posix()}\0".encode())
            found.update(hashlib.sha256(file.read_bytes()).digest())
        return found.hexdigest()

    root = file_of("fedkd")
    own = None if root is None else digest(list(root.parent.rglob("*.py")), root.parent)
    places = {module: file_of(module) for module in modules}
    return {
        "packages": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "fedkd": own,
        "modules": {
            module: None if file is None else digest([file], file.parent) for module, file in places.items()
        },
    }
