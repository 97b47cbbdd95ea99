"""Cases whose input is wrong: scenarios, overrides, data, benches and words."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tomli_w

from campaign import files
from campaign.base import Bench, stream_tables, tables, write_data, write_scenario
from campaign.sandbox import Place
from campaign.values import INTEGERS, NO_NUMBERS, TEXTS, damaged, name, scalar, value

Path = tuple[str, ...]
WORDS = (
    *("run", "check", "bench", "resume", "list", "new", "doctor", "strategies", "models", "inline"),
    *(
        "--set",
        "--out",
        "--quiet",
        "--seed",
        "--engine",
        "--rounds",
        "--dry-run",
        "--schema",
        "--version",
        "-h",
    ),
    *("a=b", "x.toml", ""),
)


def attempt(place: Place, bench: Bench, rng: np.random.Generator) -> None:
    """Give fedkd something wrong, or something odd."""
    kinds: Sequence[tuple[float, Callable[[Place, Bench, np.random.Generator], None]]] = (
        (0.38, mutated_scenario),
        (0.12, odd_but_right),
        (0.14, overridden),
        (0.09, damaged_text),
        (0.12, odd_data),
        (0.08, mutated_bench),
        (0.07, odd_words),
    )
    chances = np.array([chance for chance, _ in kinds])
    kinds[rng.choice(len(kinds), p=chances / chances.sum())][1](place, bench, rng)


def mutated_scenario(place: Place, bench: Bench, rng: np.random.Generator) -> None:
    """One to three keys of a scenario hold what they must not."""
    scenario = _start(bench, rng)
    for _ in range(int(rng.integers(1, 4))):
        path = _key(bench, rng)
        _put(scenario, path, _near(bench, path, rng) if rng.random() < 0.5 else value(rng))
    run_or_check(place, bench, rng, scenario)


def odd_but_right(place: Place, bench: Bench, rng: np.random.Generator) -> None:
    """Every name is a name, and several keys hold what their schema allows."""
    scenario = _start(bench, rng)
    for _ in range(int(rng.integers(1, 4))):
        path = _key(bench, rng)
        _put(scenario, path, _near(bench, path, rng, odd=0.15))
    run_or_check(place, bench, rng, scenario)


def overridden(place: Place, bench: Bench, rng: np.random.Generator) -> None:
    """Keys are set on the command line, as whole values or as text that is half of one."""
    path = write_scenario(place, _start(bench, rng))
    words = []
    for _ in range(int(rng.integers(1, 4))):
        key = ".".join(_key(bench, rng))
        if rng.random() < 0.5:
            content = tomli_w.dumps({"a": value(rng)}).partition("=")[2].strip() or "''"
        else:
            content = str(rng.choice(TEXTS)) + str(rng.choice(["", "]", "}", "'", "\udcff", "9" * 5000]))
        words.append(f"{key}={content}".replace("\0", rng.choice(["", "\\u0000"])))
    _run(place, bench, rng, path, ["--set", *words])


def damaged_text(place: Place, bench: Bench, rng: np.random.Generator) -> None:
    """The scenario's file has had an accident."""
    path = write_scenario(place, _start(bench, rng))
    path.write_bytes(damaged(path.read_bytes(), rng))
    _run(place, bench, rng, path, [])


def odd_data(place: Place, bench: Bench, rng: np.random.Generator) -> None:
    """The scenario is right, and a file that it reads is not."""
    write_data(place)
    run_or_check(place, bench, rng, files.odd_file(place, tables(), rng))


def mutated_bench(place: Place, bench: Bench, rng: np.random.Generator) -> None:
    """A bench's keys hold what they must not; if nothing is wrong, it is only described."""
    table: dict[str, Any] = {
        "name": "b",
        "seeds": 2,
        "parallel": False,
        "scenario": tables(rounds=1),
        "grid": {"fusion.strategy": ["local", "knfu"]},
    }
    for _ in range(int(rng.integers(1, 3))):
        roll = rng.random()
        if roll < 0.3:
            table["seeds"] = rng.choice([0, 10**9, 2**63, 5]).item() if rng.random() < 0.6 else value(rng)
        elif roll < 0.6:
            table["grid"] = {".".join(_key(bench, rng)): [value(rng) for _ in range(rng.integers(3))]}
        else:
            key = str(
                rng.choice(["name", "base", "baseline", "metrics", "set", "grid", "variants", name(rng)])
            )
            table[key] = value(rng)
    path = write_scenario(place, table, "bench.toml")
    place.run(bench.command, ["bench", path, "--dry-run", "--out", place.out / "bench"])


def odd_words(place: Place, bench: Bench, rng: np.random.Generator) -> None:
    """The words of the command line are in no order."""
    write_scenario(place, tables(), "x.toml")
    roll = rng.random()
    if roll < 0.3:
        kind = str(rng.choice(["strategy", "model", "learner", "planet"]))
        words = ["new", kind, _argument(rng), "--out", place.out]
    elif roll < 0.5:
        words = ["resume", _argument(rng), *(["--rounds", _argument(rng)] if rng.random() < 0.5 else [])]
    elif roll < 0.7:
        words = [
            "check",
            place.inputs / "x.toml",
            *(["--seed", _argument(rng)] if rng.random() < 0.5 else []),
        ]
    else:
        words = [str(rng.choice(WORDS)) for _ in range(int(rng.integers(5)))]
        if "doctor" in words or "run" in words:  # the one starts Ray, the other may find a scenario
            words = ["list", *words]
    place.run(bench.command, words)


def run_or_check(place: Place, bench: Bench, rng: np.random.Generator, scenario: dict[str, Any]) -> None:
    """Write a scenario and run it, or check it."""
    try:
        path = write_scenario(place, scenario)
    except (ValueError, TypeError, RecursionError):  # what TOML cannot say
        return
    _run(place, bench, rng, path, [])


def _run(place: Place, bench: Bench, rng: np.random.Generator, path: object, words: Sequence[object]) -> None:
    verb = ["check", path]
    if rng.random() < 0.4:
        out = ["--out", place.out / "run"] if rng.random() < 0.8 else []
        verb = ["run", path, "--quiet", "--engine", "inline", *out]
        # Neither a service of wandb's nor a cluster is of interest here.
        words = [word for word in words if not str(word).startswith(("tracking", "engine"))]
        words = words if len(words) > 1 else []
    place.run(bench.command, [*verb, *words])


def _argument(rng: np.random.Generator) -> str:
    return str(scalar(rng)).replace("\0", "")


def _start(bench: Bench, rng: np.random.Generator) -> dict[str, Any]:
    learners, strategies = bench.once("names", _names)
    if rng.random() < 0.3:
        return copy.deepcopy(stream_tables(str(rng.choice(learners))))
    scenario = copy.deepcopy(tables())
    if rng.random() < 0.5:
        scenario["fusion"] = {"strategy": str(rng.choice(strategies))}
    return scenario


def _names() -> tuple[list[str], list[str]]:
    from fedkd.continual.registry import LEARNERS
    from fedkd.fusion.registry import STRATEGIES

    return LEARNERS.names(), [*STRATEGIES.names(), "flwr:FedAvg", "flwr:FedAdam", "flwr:Krum"]


# From the schema --------------------------------------------------------------------------------------


def _schema() -> tuple[dict[str, Any], list[Path]]:
    from fedkd.plan.scenario_schema import json_schema

    schema = json_schema()
    return schema, sorted(_paths(schema, schema, ()))


def _paths(schema: dict[str, Any], part: dict[str, Any], path: Path) -> Iterator[Path]:
    """Yield the path of every key that a scenario can have."""
    if path:
        yield path
    for option in [part, *part.get("anyOf", [])]:
        if "$ref" in option:
            option = schema["$defs"][option["$ref"].rpartition("/")[2]]
        if "$ref" in option.get("items", {}):
            yield from _paths(schema, option["items"], (*path, "0"))
        for key, inner in option.get("properties", {}).items():
            yield from _paths(schema, inner, (*path, key))


def _key(bench: Bench, rng: np.random.Generator) -> Path:
    _, paths = bench.once("schema", _schema)
    while True:
        path = paths[rng.integers(len(paths))]
        if rng.random() < 0.05:
            path = (*path[:-1], name(rng))
        # A cluster and wandb's services are started for whoever names them; neither is of interest here.
        if path[0] != "tracking" and path[:2] not in (("engine",), ("engine", "kind"), ("engine", "address")):
            return path


def _near(bench: Bench, path: Path, rng: np.random.Generator, odd: float = 0.5) -> Any:
    """Return what a key may hold by its schema, or in a share of cases the like of it."""
    schema, _ = bench.once("schema", _schema)
    part: dict[str, Any] = schema
    for key in path:
        options = [part, *part.get("anyOf", [])]
        options = [schema["$defs"][o["$ref"].rpartition("/")[2]] if "$ref" in o else o for o in options]
        found = [o["properties"][key] for o in options if key in o.get("properties", {})]
        found += [o["items"] for o in options if key == "0" and "items" in o]
        if not found:
            return value(rng)
        part = found[0]
    options = part.get("anyOf", [part])
    option = options[rng.integers(len(options))]
    if "enum" in option:
        return str(rng.choice(option["enum"]))
    if "default" in part and rng.random() > odd and not isinstance(part["default"], int | float | None):
        return part["default"]  # what is no number is seldom anything else that is right
    kind = option.get("type")
    if kind == "integer":
        return INTEGERS[rng.integers(len(INTEGERS))] if rng.random() < odd else int(rng.integers(0, 8))
    if kind == "number":
        low = option.get("minimum", option.get("exclusiveMinimum", 0.0))
        high = option.get("maximum", option.get("exclusiveMaximum", 10.0))
        if rng.random() < odd:
            return float(rng.choice([low, high, 1e-300, 1e300, 1e38, 1e-38, *NO_NUMBERS]))
        return float(rng.uniform(low, high))
    if kind == "boolean":
        return bool(rng.integers(2))
    if kind == "array":
        return [scalar(rng) for _ in range(rng.integers(3))]
    return str(rng.choice(TEXTS)) if kind == "string" else value(rng)


def _put(table: dict[str, Any], path: Path, content: Any) -> None:
    """Set a key, making the tables that lead to it."""
    here: Any = table
    for key in path[:-1]:
        if isinstance(here, list):
            if not here:
                here.append({})
            here = here[0]
            continue
        if not isinstance(here, dict):
            return
        if not isinstance(here.get(key), dict | list):
            here[key] = {}
        here = here[key]
    if isinstance(here, list):
        here[:1] = [content]
    elif isinstance(here, dict):  # else a list's entry that is no table any more
        here[path[-1]] = content
