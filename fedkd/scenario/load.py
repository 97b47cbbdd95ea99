"""Read scenario files: check fields and make paths absolute.

`fedkd.plan` looks up the names of a scenario and checks their hyper-parameters.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import ValidationError

from fedkd.errors import UserError, described
from fedkd.plugins import module_path
from fedkd.scenario.explain import scenario_error
from fedkd.scenario.schema import Scenario
from fedkd.scenario.toml import InvalidToml, parse_toml
from fedkd.storage import expand_path

BENCH_KEYS = {"base", "grid", "variants", "baseline", "seeds"}  # keys that only bench files have
WRITTEN_OUT = {name for name, field in Scenario.model_fields.items() if field.default is not None}
"""Keys of a resolved scenario, which contains every default."""
PATH_DATASETS = ("npz", "table", "image-folder", "ts")  # data sets read from the ``path`` of their arguments


def read_scenario(
    mapping: Mapping[str, Any], *, file: str | None = None, folder: str | Path | None = None
) -> Scenario:
    """Check the fields of a scenario given as nested tables.

    Relative paths and plug-ins refer to `folder`, by default the working folder. Folders of the result are
    absolute, and include `folder` if the scenario names files there. Defaults of a resolved scenario do not
    count as set. The first mistake is a `UserError`.
    """
    if "search" in mapping:
        raise UserError(f"is a search, not a scenario; run it with: fedkd tune {file or 'FILE'}", file=file)
    if BENCH_KEYS & mapping.keys():
        raise UserError(f"is a bench, not a scenario; run it with: fedkd bench {file or 'FILE'}", file=file)
    try:
        scenario = Scenario.model_validate(dict(mapping))
        if mapping.keys() >= WRITTEN_OUT:
            scenario = Scenario.model_validate(scenario.model_dump(exclude_defaults=True))
        return _located(scenario, folder)
    except ValidationError as error:
        raise scenario_error(error, file=file) from None


def scenario_from_json(text: str | bytes) -> Scenario:
    """Read a scenario from ``scenario.model_dump_json()``."""
    try:
        return Scenario.model_validate_json(text)
    except ValidationError as error:
        raise scenario_error(error) from None


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file; a missing, empty or malformed one is a `UserError`."""
    try:
        if tables := parse_toml(Path(path).read_text(encoding="utf-8")):
            return tables
        # Every key has a default: without this check an empty file would run.
        told = "is empty; expected a scenario in TOML"
    except FileNotFoundError:
        told = "no such file; expected a scenario in TOML"
    except IsADirectoryError:
        told = "is a folder; expected a scenario in TOML"
    except OSError as error:
        told = f"cannot be read: {error.strerror}"
    except UnicodeDecodeError as error:
        told = f"is not UTF-8 text (byte {error.start})"
    except InvalidToml as error:
        told = f"not valid TOML: {error}"
    except ValueError as error:  # a name with a NUL character
        told = f"cannot be read: {error}"
    raise UserError(told, file=str(path))


def _located(scenario: Scenario, folder: str | Path | None) -> Scenario:
    home = Path(folder or ".").resolve()
    try:
        str(home).encode()
    except UnicodeEncodeError:
        raise UserError(f"lies in {str(home)!r}, whose name is not valid text; move the file") from None
    data = scenario.data
    if data.root is not None:
        with _naming("data.root"):
            beside = _absolute(data.root, home)
            root = beside if Path(beside).is_dir() else _absolute(data.root, Path.cwd())
            data = data.model_copy(update={"root": root})
    with _naming("plugin_path"):
        search = [_absolute(path, home) for path in scenario.plugin_path]
    # Only folders with named files are searched, so a copy of the scenario elsewhere stays equal.
    if str(home) not in search and any(_is_there(home / file) for file in _named_files(scenario)):
        search.append(str(home))
    return scenario.model_copy(update={"data": data, "plugin_path": search})


@contextmanager
def _naming(key: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise error.at(key=key) from None
    except (OSError, ValueError) as error:  # a name that is too long, or has a NUL character
        reason = error.strerror if isinstance(error, OSError) else str(error).rstrip(".").lower()
        raise UserError(f"is not a valid folder name: {reason}", key=key) from None


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # an invalid file name
        return False


def _absolute(path: str, home: Path) -> str:
    return str((home / expand_path(path)).resolve())


def _named_files(scenario: Scenario) -> list[Path]:
    """Return files that may lie beside the scenario: modules and relative paths."""
    data, fusion = scenario.data, scenario.fusion
    names = [data.dataset, data.transfer.source, data.partition.scheme, *scenario.metrics]
    names += [group.model for group in scenario.clients]
    if not fusion.from_flower:
        names.append(fusion.strategy)
    if scenario.continual is not None:
        names += [scenario.continual.learner, *scenario.continual.tasks.datasets]
    modules = [*scenario.plugins, *(name.partition(":")[0] for name in names if ":" in name)]
    paths = [data.partition.path] if data.partition.path else []
    if scenario.continual is not None and scenario.continual.tasks.schedule:
        paths.append(scenario.continual.tasks.schedule)
    if scenario.topology.path:
        paths.append(scenario.topology.path)
    for name, args in ((data.dataset, data.args), (data.transfer.source, data.transfer.args)):
        if name in PATH_DATASETS and isinstance(args.get("path"), str):
            paths.append(args["path"])
    return [*map(module_path, modules), *(Path(path) for path in paths if not Path(path).is_absolute())]


def find_file(name: str, search: Iterable[Path], *, key: str) -> Path:
    """Return a file, searched in the scenario's and the working folder."""
    given = expand_path(name, key=key)
    try:
        tried = [given] if given.is_absolute() else [base / given for base in (*search, Path())]
        path = next((candidate for candidate in tried if candidate.is_file()), None)
    except (OSError, ValueError) as error:  # a name that is too long, or has a NUL character
        raise UserError(f"is not a valid file name: {described(error)}", key=key) from None
    if path is None:
        places = ", ".join(str(candidate.absolute()) for candidate in tried)
        raise UserError(f"no file '{name}'; looked for {places}", key=key)
    return path


class _OfClients(Protocol):
    @property
    def clients(self) -> int: ...


Read = TypeVar("Read", bound=_OfClients)


def read_client_file(
    name: str, clients: int, search: Iterable[Path], parse: Callable[[str], Read], *, key: str
) -> tuple[Read, Path]:
    """Return the schedule or graph of a file, and the file's path."""
    path = find_file(name, search, key=key)
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}", key=key) from None
    except UserError as error:
        raise UserError(f"{path} is {error.message}", key=key) from None
    if found.clients != clients:
        raise UserError(f"{path} is for {found.clients} clients, but data.clients is {clients}", key=key)
    return found, path
