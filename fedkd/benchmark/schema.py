"""The bench file, one documented field at a time."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from fedkd.benchmark.merge import flatten, set_keys
from fedkd.benchmark.verdicts import Verdict
from fedkd.errors import UserError, refuse_if
from fedkd.plan import json_schema
from fedkd.plugins import explain_error, show_value
from fedkd.report import CONTINUAL_METRICS, LISTED_METRICS, OVER_CLIENTS
from fedkd.scenario import (
    NAME_PATTERN,
    Section,
    check_metric_name,
    dotted_key,
    find_shipped,
    parse_override,
    read_toml,
    shipped_names,
)
from fedkd.storage import expand_path

COMPARED_METRICS = (
    *("accuracy_before_fusion_local", "accuracy_before_fusion_global", "accuracy_local", "accuracy_global"),
    *("loss_local", "loss_global", "fusion_gain_local", "fusion_gain_global", "loss_train"),
    *("share_below_baseline_local", "share_below_baseline_global"),
    *("effective_neighbours_train", "bytes_up", "bytes_down", "seconds", "virtual_seconds"),
)
"""Metrics of every run; strategies, learners and streams record more."""

OF_MODELS = tuple(
    f"{metric}_{model}_{split}"
    for metric in ("accuracy_before_fusion", "accuracy")
    for model in ("personal", "shared")
    for split in ("local", "global")
)
"""Metrics of strategies whose clients have a model of their own beside the average."""

Seed = Annotated[int, Field(ge=0)]
Seeds = Annotated[list[Seed], Field(min_length=1)] | Annotated[int, Field(ge=1, lt=2**63)]


class ExperimentFile(Section):
    """Keys that the files of benches and of searches share."""

    name: str = Field("bench", pattern=NAME_PATTERN)
    """Name of the bench, or of the search; letters, digits, `.`, `_` and `-`."""
    base: str | None = None
    """The scenario file of every cell or trial, relative to this file, or a shipped one's name; or
    `[scenario]` instead. Other relative paths and plug-ins are searched beside it."""
    scenario: dict[str, Any] | None = None
    """The base scenario itself, as a scenario file has it."""
    seeds: Seeds | None = None
    """Every cell or trial runs once with each of these seeds; a number n means 1, 2, …, n."""
    parallel: bool = True
    """True: cells or trials run side by side on Ray, whatever the base's engine, each on
    `engine.cpus_per_actor` CPUs and `engine.gpus_per_actor` GPUs. False: one after the other in this
    process, for debugging. Never changes a result."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Scenario keys that differ from the base in every cell or trial."""


class ForecastFile(Section):
    """Forecasts of each cell's accuracy after its last round, from its first rounds."""

    metric: Literal[
        "accuracy_local", "accuracy_global", "accuracy_before_fusion_local", "accuracy_before_fusion_global"
    ] = "accuracy_local"
    """The accuracy that is forecast."""
    confidence: Annotated[float, Field(ge=0.5, lt=1.0)] = 0.9
    """Confidence of the intervals; they need at least c/(1 − c) finished cells, nine for 0.9."""
    stop: bool = False
    """True: a cell stops once its interval ends below the best setting's value of its seed, if its setting is
    then not tied (†) with the best one, even at the upper end. Each setting keeps its first two seeds; the
    best setting, the baseline and upper bounds keep all."""


class BenchFile(ExperimentFile):
    """The cells of a bench and their comparison.

    In every table of scenario keys (`set`, `grid`, a variant, `baseline`), `"a.b" = 1`, `a.b = 1` and
    `a = { b = 1 }` set the same single key. Its neighbours keep their values. A key that ends in `!` replaces
    the whole table: `"fusion!" = { strategy = "fedmd" }`.

    Hyper-parameters belong to their strategy or learner: a cell with another one drops the base's values.
    Values of this file stay, and a strategy refuses a cell with a key that it does not have. A key that an
    axis makes useless is left out; any other unused key is refused.
    """

    seeds: Seeds = 3
    """Every cell runs once with each of these seeds; a number n means 1, 2, …, n."""
    baseline: dict[str, Any] = Field(default_factory=dict)
    """Axis to value: the cells that all others are compared with, paired by seed and all other axes."""
    metrics: Annotated[list[str], Field(min_length=1)] | None = None
    """Metrics of the table and the figures: `METRIC_SPLIT` of the last round, averaged over clients
    (`accuracy_before_fusion_local`, `accuracy_local` after fusion, `loss_global`, `fusion_gain_local`,
    `loss_train`, …), `bytes_up`, `bytes_down`, `seconds`, or a continual metric of the summary
    (`average_accuracy_task_incremental`, `bwt`, `forgetting`, `stored_bytes_per_task`, …). Metrics of the
    cells' key `metrics` are `macro_f1_local`, `macro_f1_before_fusion_local`, …. An ending names another
    statistic over clients than the mean: `accuracy_local_worst_10`, `_min`, `_max`, `_std`, `_jain`, `_gini`.
    `share_below_baseline_local` and `_global` are the shares of clients below their accuracy in the baseline.
    `intransigence` and `gain_over_single` need the learners `joint` and `single` among the compared cells.
    Absent: accuracies before and after fusion. For streams of tasks: average accuracies with and without the
    task given, `bwt`, `forgetting`, bytes stored, `seconds`."""
    grid: dict[str, Any] = Field(default_factory=dict)
    """Axes: scenario key to the list of its values."""
    variants: dict[str, dict[str, dict[str, Any]]] = Field(default_factory=dict)
    """Axes whose values are named sets of scenario keys: `[variants.AXIS]` holds `"NAME" = { … }`."""
    forecast: ForecastFile | None = None
    """Forecast learning curves, and stop hopeless cells if asked to; absent: neither."""
    verdicts: list[Verdict] = Field(default_factory=list)
    """Claims about settings, each with pass marks over seeds; the bench prints them as a table."""


@dataclass(frozen=True)
class Bench:
    """A bench file with its base scenario."""

    spec: BenchFile
    base: dict[str, Any]
    folder: Path
    fixed: dict[str, Any]  # dotted keys of ``--set``, which override every cell
    file: str

    @property
    def seeds(self) -> Sequence[int]:
        """The seeds, in order."""
        said = self.spec.seeds
        return range(1, said + 1) if isinstance(said, int) else said

    @cached_property
    def varied(self) -> dict[str, set[str]]:
        """Name of each axis to the dotted keys that it sets at some of its levels."""
        found: dict[str, set[str]] = {}
        for key, values in flatten(self.spec.grid).items():
            found[key] = {own for value in values for own in set_keys({key: value})}
        for axis, variants in self.spec.variants.items():
            found[axis] = {own for changes in variants.values() for own in set_keys(changes)}
        return found


def load_bench(path: str | Path, overrides: Sequence[str] = ()) -> Bench:
    """Read and check a bench file and its base scenario.

    An override of a bench key (``seeds=1``) changes the bench; any other is a scenario key for every cell.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"must be the path of a bench file, got {type(path).__name__}")
    path = find_shipped(path, "bench")
    file = str(path)
    mapping = read_toml(path)
    if "search" in mapping:
        raise UserError(f"is a search, not a bench; run it with: fedkd tune {file}", file=file)
    if mapping.keys() & {"data", "fusion", "rounds"} and not mapping.keys() & {"base", "scenario"}:
        raise UserError(f"is a scenario, not a bench; run it with: fedkd run {file}", file=file)
    fixed = apply_overrides(mapping, overrides, BenchFile.model_fields)
    with file_errors(file, BenchFile):
        spec = BenchFile.model_validate(mapping)
        check_base_and_seeds(spec)
        _check_metrics(spec.metrics or [])
        for key, values in flatten(spec.grid).items():
            wrong = not isinstance(values, list) or not values
            refuse_if(wrong, f"must be a list of values, got {values!r}", dotted_key(("grid", key)))
        for axis, variants in spec.variants.items():
            refuse_if(not variants, "must have at least one variant", dotted_key(("variants", axis)))
        folder, base = base_scenario(spec, path)
    return Bench(spec, base, folder, fixed, file)


def apply_overrides(
    mapping: dict[str, Any], overrides: Sequence[str], keys: Collection[str]
) -> dict[str, Any]:
    """Set keys of a bench or search file in `mapping`; return the others, dotted scenario keys."""
    fixed = {}
    for text in overrides:
        (first, *rest), value = parse_override(text)
        if first not in keys:
            fixed[".".join([first, *rest])] = value
        elif not rest:
            mapping[first] = value
        else:
            table = mapping.setdefault(first, {})
            if not isinstance(table, dict):
                key = ".".join([first, *rest])
                raise UserError(f"{first} is a single value, so {key} cannot be set", key="--set")
            if first == "variants":
                raise UserError("variants are changed in the bench file", key="--set")
            mapping[first] = (flatten(table) if first == "grid" else table) | {".".join(rest): value}
    return fixed


@contextmanager
def file_errors(file: str, model: type[ExperimentFile]) -> Iterator[None]:
    """Add the file and the key to errors of the block."""
    try:
        yield
    except ValidationError as error:
        problems = error.errors(include_url=False)
        first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
        location = first["loc"]
        known = model.model_fields if len(location) == 1 else ()
        key, message = dotted_key(location), explain_error(first, known)
        if location[0] == "seeds":
            got = show_value(first["input"])
            key, message = "seeds", f"must be a list of integers ≥ 0, or a number of seeds ≥ 1, got {got}"
        raise UserError(message, key=key, file=file) from None
    except UserError as error:
        on_command_line = error.key is not None and error.key.startswith("--")
        raise error if on_command_line else error.at(file=file) from None


def dump_bench(bench: Bench) -> str:
    """Return a bench as one TOML file, with its base scenario and the changes of ``--set``."""
    told = bench.spec.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    told.pop("base", None)
    fixed = {"set": told.get("set", {}) | bench.fixed} if bench.fixed else {}
    return dump_file("bench", told | fixed | {"scenario": bench.base})


def dump_file(kind: str, tables: Mapping[str, Any]) -> str:
    """Return the tables of a bench, or another kind of file with a base scenario, as TOML."""
    import tomli_w

    told = "with its base scenario; relative paths are those of the file that it was read from."
    return f"# The {kind} {told}\n{tomli_w.dumps(tables)}"


def check_base_and_seeds(spec: ExperimentFile) -> None:
    """Check for one base scenario and distinct seeds."""
    if (spec.base is None) == (spec.scenario is None):
        given = "both are given" if spec.base else "neither is given"
        raise UserError(f"needs one base scenario, as base or as [scenario]; {given}", key="base")
    if isinstance(spec.seeds, list) and len(set(spec.seeds)) < len(spec.seeds):
        raise UserError(f"must be different, got {spec.seeds}", key="seeds")


def _check_metrics(metrics: list[str]) -> None:
    known = (*COMPARED_METRICS, *OF_MODELS, *LISTED_METRICS, *CONTINUAL_METRICS)
    for full_name in metrics:
        check_metric_name(full_name, "metrics")
        ending = next((over for over in OVER_CLIENTS if full_name.endswith(f"_{over}")), "")
        name = full_name.removesuffix(f"_{ending}")
        # Strategies may record unknown metrics, but not under nearly a known name.
        # The long ending makes r2_before_fusion_local near to any such name.
        near = get_close_matches(name, (one for one in known if one[:3] != "r2_"), n=1, cutoff=0.85)
        if near and near[0] != name and name not in known:
            raise UserError(f"no metric '{name}'; did you mean '{near[0]}'?", key="metrics")
        if name not in known and not name.endswith(("_local", "_global", "_train")):
            told = f"no metric '{name}'; allowed: METRIC_local, METRIC_global, METRIC_train, bytes_up,"
            told += " bytes_down, seconds; for streams average_accuracy, bwt, forgetting, …"
            raise UserError(told, key="metrics")
    if len(set(metrics)) < len(metrics):
        raise UserError(f"must be different, got {metrics}", key="metrics")


def base_scenario(spec: ExperimentFile, path: Path) -> tuple[Path, dict[str, Any]]:
    """Return the folder that a base scenario's paths are relative to, and its tables."""
    if spec.base is None:
        return path.parent, dict(spec.scenario or {})
    base = path.parent / expand_path(spec.base, key="base")
    if not base.is_file():
        shipped = shipped_names("scenario").get(spec.base)
        if shipped is None:
            raise UserError(f"no such file: {base}", key="base")
        base = shipped
    return base.parent, read_toml(base)


def bench_json_schema() -> dict[str, Any]:
    """Return the JSON schema of a bench; reading checks keys in `set`, `grid`, `variants` and `baseline`."""
    return add_scenario_schema(BenchFile.model_json_schema(), "fedkd bench")


def add_scenario_schema(schema: dict[str, Any], title: str) -> dict[str, Any]:
    """Return the JSON schema of a file with a base scenario, with that scenario's own schema in it."""
    scenario = json_schema()
    definitions = schema.setdefault("$defs", {}) | scenario.pop("$defs")
    del scenario["$schema"], scenario["title"]
    schema["$defs"] = definitions | {"Scenario": scenario}
    properties = schema["properties"]
    properties["scenario"] = {
        "anyOf": [{"$ref": "#/$defs/Scenario"}, {"type": "null"}],
        "default": None,
        "description": properties["scenario"]["description"],
    }
    return schema | {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title}
