"""The floors of the house: no import runs upwards, inside functions neither, and packages form no circle."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "fedkd"
ROOT = (PACKAGE / "__init__.pyi").read_text(encoding="utf-8")

# Lowest first. A room is a package or a module directly below `fedkd`; rooms of one floor stand side by side.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("randomness", "storage"),
    ("plugins",),
    ("scenario",),
    ("data",),
    ("models",),
    ("training",),
    ("continual",),
    ("fusion",),
    ("register",),  # knows every registry
    ("plan",),
    ("tracking",),
    ("report",),
    ("clients",),
    ("server",),
    ("federation",),
    ("engine",),
    ("simulation",),
    ("scaffold", "trained", "deployment", "auditing"),
    ("benchmark",),
    ("tuning",),
    ("cli", "__main__", "__init__"),
)
WITHOUT_FLOWER_AND_RAY = (
    *("scenario", "data", "models", "training", "continual", "fusion", "plan", "clients", "server"),
)
ROOMS_WITH_CIRCLES = {"tracking": 2}
"""Rooms whose modules still import each other, with the number of circles, which may only shrink."""
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


@dataclass(frozen=True)
class Import:
    """One import.

    Args:
        place: File and line.
        room: The room it is in.
        names: What is imported, as dotted names; of ``from a import b`` both ``a`` and ``a.b``.
        typing_only: Whether it stands below ``if TYPE_CHECKING``.
    """

    place: str
    room: str
    names: tuple[str, ...]
    typing_only: bool

    def __str__(self) -> str:
        return f"{self.place}: {self.names[-1]}" + (" (only for types)" if self.typing_only else "")


def room_of(path: Path) -> str:
    """Return the room that a module of fedkd is in."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def module_of(path: Path) -> list[str]:
    """Return the dotted parts of the package that a module's relative imports start from."""
    return ["fedkd", *path.relative_to(PACKAGE).parts[:-1]]


def imports_of(path: Path) -> Iterator[Import]:
    """Yield every import of a module, wherever in it it stands."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [(alias.name,) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = module_of(path)[: len(module_of(path)) - node.level + 1] if node.level else []
            base = ".".join([*package, *filter(None, [node.module])])
            found = [(base, f"{base}.{alias.name}") for alias in node.names]
        else:
            continue
        place = f"{path.relative_to(PACKAGE.parent)}:{node.lineno}"
        yield from (Import(place, room_of(path), names, id(node) in typing) for names in found)


@cache
def all_imports() -> tuple[Import, ...]:
    """Return every import of fedkd."""
    return tuple(found for path in sorted(PACKAGE.rglob("*.py")) for found in imports_of(path))


def target_of(found: Import) -> str | None:
    """Return the room that an import goes to; None outside fedkd, and for fedkd's own version."""
    parts = found.names[-1].split(".")
    if parts[0] != "fedkd" or parts[1:] == ["__version__"]:
        return None
    if len(parts) > 1 and parts[1] in FLOOR:
        return parts[1]
    return "__init__"


def between_rooms() -> Iterator[tuple[Import, str]]:
    """Yield the imports that leave their room for another one of fedkd."""
    for found in all_imports():
        target = target_of(found)
        if target is not None and target != found.room:
            yield found, target


def test_every_package_has_a_layer():
    rooms = {room_of(path) for path in PACKAGE.rglob("*.py")}
    assert sorted(rooms - FLOOR.keys()) == [], "rooms that are not on the plan"
    assert sorted(FLOOR.keys() - rooms) == [], "rooms on the plan that are not there"


MODULES_AT_A_DOOR = {"fedkd.federation.messages.records"}
"""Modules that other rooms import whole: constants of messages, which read best as `msg.TRAIN`."""


def test_packages_import_from_public_modules():
    """An import from another room names that room alone, whose `__init__.pyi` lists what others may use."""
    past = [
        str(found)
        for found, target in between_rooms()
        if (PACKAGE / target).is_dir()
        and found.names[0].count(".") > 1
        and found.names[-1] not in MODULES_AT_A_DOOR
    ]
    assert past == []


def test_public_modules_export_used_names_only():
    used = {(target, found.names[-1].rpartition(".")[2]) for found, target in between_rooms()}
    for folder in ("fedkd/scaffold", "docs", "scenarios", "README.md"):
        places = REPOSITORY / folder
        for path in [places] if places.is_file() else places.rglob("*.*"):
            if path.suffix in (".py", ".md", ".ipynb", ".template"):
                text = path.read_text(encoding="utf-8")
                for room, names in re.findall(r"from fedkd\.(\w+) import ([\w, ]+)", text):
                    used |= {(room, name) for name in names.split(", ")}
    root = {name for names in re.findall(r"import (.*)", ROOT) for name in re.findall(r"as (\w+)", names)}
    exported = {
        (stub.parent.name, name)
        for stub in PACKAGE.glob("*/__init__.pyi")
        for name in re.findall(r"as (\w+)", stub.read_text(encoding="utf-8"))
    }
    assert sorted(pair for pair in exported - used if pair[1] not in root) == []


def test_no_import_goes_to_a_higher_layer():
    upwards = [
        (found, target)
        for found, target in between_rooms()
        if found.room in FLOOR and FLOOR[target] > FLOOR[found.room]
    ]
    upwards.sort(key=lambda pair: pair[0].typing_only)
    if upwards:
        lines = [f"{found}: {found.room} is below {target}" for found, target in upwards]
        pytest.fail("\n".join(["imports of a higher floor:", *lines]), pytrace=False)


def shortest_circle(room: str, steps: dict[str, dict[str, Import]]) -> list[Import]:
    """Return the imports of the shortest way from a room back to it; none if there is no way."""
    ways: list[tuple[str, list[Import]]] = [(room, [])]
    seen: set[str] = set()
    for here, way in ways:  # grows while it is walked: breadth first
        for target, found in steps.get(here, {}).items():
            if target == room:
                return [*way, found]
            if target not in seen:
                seen.add(target)
                ways.append((target, [*way, found]))
    return []


def test_packages_have_no_circular_imports():
    steps: dict[str, dict[str, Import]] = {}
    for found, target in between_rooms():
        if not found.typing_only:
            steps.setdefault(found.room, {}).setdefault(target, found)
    circles = {frozenset(map(str, way)): way for room in steps if (way := shortest_circle(room, steps))}
    if circles:
        told = [
            "\n  ".join([" → ".join([*(step.room for step in way), way[0].room]), *map(str, way)])
            for way in circles.values()
        ]
        pytest.fail("\n".join(["rooms that import each other:", *told]), pytrace=False)


def module_circles(room: str) -> list[str]:
    """Return the circles of imports between a room's modules, imports for types alone left out."""
    steps: dict[str, dict[str, Import]] = {}
    modules = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in PACKAGE.rglob("*.py")
    }
    for found in all_imports():
        here = found.place.partition(":")[0].removesuffix(".py").replace("/", ".")
        target = next((name for name in reversed(found.names) if name in modules), None)
        inside = target is not None and target.split(".")[1] == room
        if found.room == room and inside and not found.typing_only:
            steps.setdefault(here, {}).setdefault(target, found)
    ways = [way for module in steps if (way := shortest_circle(module, steps))]
    return sorted({" ".join(sorted(str(found) for found in way)) for way in ways})


@pytest.mark.parametrize("room", sorted({path.parent.name for path in PACKAGE.glob("*/__init__.py")}))
def test_modules_have_no_circular_imports(room):
    circles = module_circles(room)
    known = ROOMS_WITH_CIRCLES.get(room, 0)
    assert len(circles) <= known, "\n".join(["modules that import each other:", *circles])


@pytest.mark.parametrize("room", WITHOUT_FLOWER_AND_RAY)
def test_the_science_needs_neither_flower_nor_ray(room):
    heavy = [
        found
        for found in all_imports()
        if found.room == room and found.names[0].split(".")[0] in ("flwr", "ray")
    ]
    if heavy:
        pytest.fail("\n".join([f"{room} imports Flower or Ray:", *map(str, heavy)]), pytrace=False)


WITHOUT = """
import sys
sys.modules["flwr"] = sys.modules["ray"] = None  # as on a machine that has neither
from fedkd.clients.factory import ClientFactory
from fedkd.data.load import load_data
from fedkd.plan.load import parse_plan
from fedkd.server.knowledge_cache import Upload
from fedkd.server.fusing import Fusing, ServerKnowledge

plan = parse_plan({"data": {"clients": 2, "transfer": {"size": 20}}, "clients": [{"model": "mlp"}]})
factory, uploads = ClientFactory(plan, load_data(plan.scenario)), {}
ready = set(sys.modules)
for index in (0, 1):
    client = factory.build(index)
    client.complete(client.train(1))
    uploads[index] = Upload(1, client.upload(1), client.num_train_samples)
fusing = Fusing(plan.strategy, ServerKnowledge())
assert fusing.fuse(1, uploads, (0, 1)) == 2 * 20 * 10 * 4
client.complete(client.learn(fusing.mailbox.take(1).arrays, 1))
of_torch = ("torch.profiler", "torch.nested", "torch.fx.experimental")  # its first backward pass imports them
late = {module for module in set(sys.modules) - ready if not module.startswith(of_torch)}
assert not late, f"imported in the first round: {late}"
heavy = {"torch._dynamo", "sklearn", "torchvision", "matplotlib"} & set(sys.modules)
assert not heavy, f"imported for nothing: {heavy}"
"""


def test_a_round_runs_without_flower_and_ray():
    """Whoever names no strategy of Flower's needs neither, however deep an import stands.

    And nothing is left to be imported by the first round.
    """
    subprocess.run([sys.executable, "-c", WITHOUT], check=True, timeout=120, cwd=PACKAGE.parent)


def test_stubs_of_public_modules_match_their_imports():
    """The tables are written by `scripts/doors.py`: Flower's apps ship no stubs."""
    for stub in PACKAGE.glob("*/__init__.pyi"):
        names = set(re.findall(r"as (\w+)", stub.read_text(encoding="utf-8")))
        assert set(import_module(f"fedkd.{stub.parent.name}").__all__) == names, stub
