"""The cells of a bench: every combination of its axes with every seed, as resolved scenarios."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

from fedkd.benchmark.merge import flatten, forget_hyperparameters, merged, set_keys
from fedkd.benchmark.schema import Bench
from fedkd.errors import UserError, did_you_mean
from fedkd.plan import OverrideLayers, find_plug_ins, parse_scenario, parse_without_plugins
from fedkd.scenario import RESULT_NEUTRAL_KEYS, Scenario, dotted_key, evaluation_protocols, scenario_digest

FORMULA = re.compile(r"\s*(?:[=@]|[+-](?!(?:[\d.]+(?:e[+-]?\d+)?|∞|inf|nan)$))")
"""Beginning of a text that a spreadsheet reads as a formula, except numbers."""
MOST_CELLS = 100_000  # all are resolved, and stand in one table, before the first runs
# Columns of the results, whose names no axis may have.
RESERVED = ("seed", "hash", "status", "round", "client", "task", "split", "metric", "value")


@dataclass(frozen=True)
class Level:
    """One value of an axis."""

    label: str  # in tables: ``0.1``, ``knfu β=2``
    value: Any  # in results; the label, if the key takes a table or a list
    changes: Mapping[str, Any]  # dotted scenario keys


@dataclass(frozen=True)
class Axis:
    """An axis of a bench: a scenario key, or a family of named variants."""

    name: str
    levels: tuple[Level, ...]


@dataclass(frozen=True, eq=False)
class Cell:
    """One run of the bench."""

    levels: Mapping[str, Level]  # by axis
    seed: int
    scenario: Scenario
    hash: str  # digest of all that decides the result, 64 hex digits

    @property
    def label(self) -> str:
        """The cell in words: ``alpha=0.1 strategy=fedmd seed=1``."""
        return cell_label(self.levels, self.seed)

    @property
    def folder_name(self) -> str:
        """Name of the run folder, readable and unique."""
        return f"{run_name(self.levels, self.seed)}-{self.hash[:8]}"


def cell_label(levels: Mapping[str, Level], seed: int) -> str:
    """Return a cell in words."""
    words = [f"{axis.rpartition('.')[2]}={level.label}" for axis, level in levels.items()]
    return " ".join([*words, f"seed={seed}"])


def run_name(levels: Mapping[str, Level], seed: int) -> str:
    """Return the name of a cell's run: ``alpha0.1-fedmd-seed1``."""
    words = [
        level.label if isinstance(level.value, str) else axis.rpartition(".")[2] + level.label
        for axis, level in levels.items()
    ]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join([*words, f"seed{seed}"])).strip("-._")[:100]


def make_axes(bench: Bench) -> tuple[Axis, ...]:
    """Return the axes of a bench: the grid's, then the variants'."""
    axes = [
        Axis(key, tuple(make_level(key, value) for value in values))
        for key, values in flatten(bench.spec.grid).items()
    ]
    for name, variants in bench.spec.variants.items():
        levels = tuple(Level(label, label, flatten(changes)) for label, changes in variants.items())
        axes.append(Axis(name, levels))
    for axis in axes:
        key, labels = dotted_key(("grid", axis.name)), [level.label for level in axis.levels]
        if axis.name in RESERVED:
            told = f"'{axis.name}' cannot be an axis: the results have a column of that name"
            told += "; set seeds" * (axis.name == "seed")
            raise UserError(told, file=bench.file)
        for label in (axis.name, *labels):
            if not label.strip() or not label.isprintable() or FORMULA.match(label):
                told = "names are printable and begin with none of = + - @, unless they are numbers"
                raise UserError(f"{label!r} cannot stand in a table; {told}", key=key, file=bench.file)
        repeated = next((label for label in labels if labels.count(label) > 1), None)
        if repeated is not None:
            raise UserError(f"{repeated} is listed twice", key=key, file=bench.file)
    names = [axis.name for axis in axes]
    if len(set(names)) < len(names):
        raise UserError("an axis of the grid and an axis of the variants have the same name", file=bench.file)
    return tuple(axes)


def make_level(key: str, value: Any) -> Level:
    """Return the level of a scenario key at one of its values."""
    label = _text(value)
    return Level(label, label if isinstance(value, dict | list) else value, flatten({key: value}))


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, dict):
        return ", ".join(f"{key}={_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "+".join(_text(item.get("model", item) if isinstance(item, dict) else item) for item in value)
    return str(value)


def make_cells(bench: Bench, *, plug_ins: bool = True) -> list[Cell]:
    """Return the cells seed by seed; without `plug_ins`, scenarios lack the plug-ins' defaults."""
    axes = make_axes(bench)
    _check_fixed(bench, axes)
    number = len(bench.seeds) * prod(len(axis.levels) for axis in axes)
    if number > MOST_CELLS:
        told = f"{len(bench.seeds):,} seeds for each combination make {number:,} cells"
        raise UserError(f"{told}; at most {MOST_CELLS:,}", key="seeds", file=bench.file)
    cells = [make_cell(bench, levels, seed, plug_ins) for seed, levels in combinations(bench, axes)]
    seen: dict[str, Cell] = {}
    for cell in cells:
        twin = seen.setdefault(cell.hash, cell)
        if twin is not cell:
            told = f"cells '{twin.label}' and '{cell.label}' are the same scenario: they differ at most in"
            told += f" {', '.join(RESULT_NEUTRAL_KEYS)}, which never change a result"
            raise UserError(told, file=bench.file)
    return cells


def plug_ins_of_cells(cells: Sequence[Cell]) -> dict[str, str]:
    """Return the plug-ins that cells name, by key; several at one key are joined."""
    named: dict[str, dict[str, None]] = {}
    for cell in cells:
        for key, name in find_plug_ins(cell.scenario).items():
            named.setdefault(key, {})[name] = None
    return {key: ", ".join(names) for key, names in named.items()}


def combinations(bench: Bench, axes: tuple[Axis, ...]) -> Iterator[tuple[int, dict[str, Level]]]:
    """Yield the seed and the levels of every cell."""
    names = [axis.name for axis in axes]
    for seed in bench.seeds:  # may be a range of any length
        for levels in product(*(axis.levels for axis in axes)):
            yield seed, dict(zip(names, levels, strict=True))


def _check_fixed(bench: Bench, axes: tuple[Axis, ...]) -> None:
    for key in bench.fixed:
        changes = ((axis.name, own) for axis in axes for level in axis.levels for own in level.changes)
        # A table that an axis replaces as a whole (`fusion!`) may still have keys set for all cells.
        axis = next((name for name, own in changes if _steps_into(own, key) or _steps_into(key, own)), None)
        if axis is not None:
            raise UserError(f"varies along the axis '{axis}'; it cannot be set for all cells", key=key)


def _steps_into(table: str, key: str) -> bool:
    return f"{key}.".startswith(f"{table}.")


def cell_tables(
    bench: Bench, axes: Mapping[str, Mapping[str, Any]], seed: int
) -> tuple[dict[str, Any], OverrideLayers]:
    """Return the tables of a cell's scenario, and the keys that all cells, ``--set`` and its `axes` set."""
    common, changes = flatten(bench.spec.set), {key: own[key] for own in axes.values() for key in own}
    tables = forget_hyperparameters(bench.base, {**common, **changes, **bench.fixed})
    tables = merged(tables, common, changes, bench.fixed) | {"seed": seed}
    everywhere, fixed, *levels = (set_keys(layer) for layer in (bench.spec.set, bench.fixed, *axes.values()))
    varied = [bench.varied.get(name, keys) for name, keys in zip(axes, levels, strict=True)]
    return tables, OverrideLayers([everywhere, fixed], levels, varied)


def make_cell(bench: Bench, levels: Mapping[str, Level], seed: int, plug_ins: bool = True) -> Cell:
    """Return a cell of a bench."""
    try:
        tables, layers = cell_tables(bench, {name: level.changes for name, level in levels.items()}, seed)
        if plug_ins:
            scenario = parse_scenario(tables, folder=bench.folder, layers=layers)
        else:
            scenario = parse_without_plugins(tables, folder=bench.folder, layers=layers).scenario
        if scenario.faults.timeout is not None:
            told = "must be left out: a cell runs in one process, which cannot interrupt a client"
            raise UserError(told, key="faults.timeout")
        if "checkpoint_every" not in tables:
            # Bench cells are short: a checkpoint in every round would waste time on the disk.
            scenario = scenario.model_copy(update={"checkpoint_every": scenario.rounds})
    except UserError as error:
        raise name_cell_in_error(error, cell_label(levels, seed), bench.file) from None
    named = {"name": run_name(levels, seed), "tracking": scenario.tracking.grouped(bench.spec.name)}
    return Cell(levels, seed, scenario.model_copy(update=named), scenario_digest(scenario))


def name_cell_in_error(error: UserError, label: str, file: str) -> UserError:
    """Return an error about a scenario with the name of its cell."""
    where = f"cell '{label}'" + (f": {error.key}" if error.key else "")
    return UserError(f"{where}: {error.message}", file=file)


def data_key(scenario: Scenario) -> str:
    """Return a text of the keys that decide a cell's data, without the seed; many cells share it."""
    shared = scenario.data.model_dump_json() + scenario.heterogeneity.model_dump_json()
    if (continual := scenario.continual) is None:
        return shared
    return f"{shared}{continual.tasks.model_dump_json()}{continual.head}"


def resolve_baseline(bench: Bench, axes: tuple[Axis, ...]) -> dict[str, str]:
    """Return the baseline as axis name to the label of its level; empty if there is none."""
    given = flatten(bench.spec.baseline)
    baseline = {name: _text(value) for name, value in given.items()}
    labels = {axis.name: [level.label for level in axis.levels] for axis in axes}
    for name, label in baseline.items():
        if label in labels.get(name, ()):
            continue
        told = f"no axis '{name}'; {did_you_mean(name, labels)}"
        if name in labels:
            told = f"axis '{name}' has no value {given[name]!r}; {did_you_mean(label, labels[name])}"
        raise UserError(told, key="baseline", file=bench.file)
    return baseline


def compared_axes(axes: tuple[Axis, ...], baseline: Mapping[str, str]) -> tuple[str, ...]:
    """Return the axes along which cells are compared, those within a block of the table.

    They are the axes of the baseline. Without one, it is the strategy, the learner, the first axis of names,
    or the last axis.
    """
    if baseline:
        return tuple(axis.name for axis in axes if axis.name in baseline)
    names = [axis.name for axis in axes]
    named = [axis.name for axis in axes if all(isinstance(level.value, str) for level in axis.levels)]
    methods = [name for name in ("fusion.strategy", "continual.learner") if name in names]
    return tuple([*methods, *named, *names[-1:]][:1])


def shown_metrics(bench: Bench, cells: Sequence[Cell]) -> tuple[str, ...]:
    """Return the metrics of the table: those of the bench file, else the defaults of its cells."""
    if bench.spec.metrics is not None:
        return tuple(bench.spec.metrics)
    streams = [(cell.scenario, own) for cell in cells if (own := cell.scenario.continual) is not None]
    main = dict.fromkeys(cell.scenario.main_metric for cell in cells)
    if any(cell.scenario.data.is_regression for cell in cells):
        moments = [
            f"{name}{at}_{split}"
            for name in main
            for split in ("local", "global")
            for at in ("_before_fusion", "")
        ]
        return tuple(moments)
    if not streams:
        local = ("accuracy_before_fusion_local", "accuracy_local")
        return (*local, "accuracy_before_fusion_global", "accuracy_global")
    tests = dict.fromkeys(
        f"average_accuracy_{protocol}"
        for scenario, own in streams
        for protocol in evaluation_protocols(scenario)[: 2 if own.evaluate_without_task else 1]
    )
    return (*tests, "bwt", "forgetting", "stored_bytes_per_task", "peak_bytes", "seconds")
