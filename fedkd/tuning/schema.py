"""The file of a search, one documented field at a time."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from fedkd.benchmark import (
    Bench,
    BenchFile,
    ExperimentFile,
    Seeds,
    add_scenario_schema,
    apply_overrides,
    base_scenario,
    check_base_and_seeds,
    dump_file,
    file_errors,
    flatten,
    keys_overlap,
    value_at,
)
from fedkd.errors import UserError, refuse_if
from fedkd.scenario import NAME_PATTERN, PositiveInt, Scenario, find_shipped, read_toml
from fedkd.tuning.objective import AVERAGE, DEFAULT, OBJECTIVES, PREFIX, check_metric
from fedkd.tuning.space import Dimension, Range, dimensions, parse_search

MOST_TRIALS = 100_000
SHARE = 0.2  # default share of every client's training samples that is held out


class TuneFile(ExperimentFile):
    """A search space and its objective.

    Keys of `set` and `search` are those of a scenario, dotted or nested, as in a bench file. One that ends in
    `!` replaces the whole table: `"fusion!" = [{ strategy = "fedmd" }, { strategy = "knfu", beta = 10.0 }]`.
    """

    name: str = Field("search", pattern=NAME_PATTERN)
    """Name of the search; letters, digits, `.`, `_` and `-`."""
    seeds: Seeds | None = None
    """Every trial runs once with each of these seeds, and its value is the mean; a number n means 1, 2, …, n.
    Absent: the base's seed alone."""
    metric: str = DEFAULT
    """The objective, to be maximised: accuracy on held-out training samples, the mean over clients.
    `validation/accuracy_local` tests each client on its own samples, `validation/accuracy_global` on those of
    all clients. `validation/accuracy_before_fusion_local` and `…_global` are those before fusion. Of a
    stream of tasks: `validation/average_accuracy_task_incremental`, `…_domain_incremental`,
    `…_class_incremental`."""
    validation: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Share of each client's training samples that is held out; absent: the base's `data.validation`, else
    0.2. No trial is measured on test samples."""
    trials: Annotated[int, Field(ge=1, le=MOST_TRIALS)] = 20
    """Number of trials; the first is the base itself, if its values are in the search space."""
    together: PositiveInt = 4
    """Trials of a batch, which are drawn together and run side by side. They depend on earlier batches alone,
    so a search tries the same values on any machine."""
    sampler: Literal["tpe", "random"] = "tpe"
    """The sampler of trials: the tree-structured Parzen estimator (Bergstra et al. 2011), or random draws."""
    startup: Annotated[int, Field(ge=0)] = 8
    """Trials that are drawn at random before the sampler learns. Also the finished runs of a seed that are
    needed before a run is stopped early."""
    pruner: Literal["median", "forecast", "none"] = "median"
    """`median` stops a run once its best value is below the median of runs of earlier batches by the same
    round. `forecast` stops it once the 90 % interval of its forecast ends below the best final value of
    earlier batches with the same seed; it needs nine complete runs, and a metric without tasks."""
    warmup: Annotated[int, Field(ge=0)] = 1
    """Rounds at the beginning in which no run is stopped."""
    search: dict[str, Any] = Field(default_factory=dict)
    """The search space: scenario key to a range `{ low = 1e-4, high = 1e-1, log = true }`, or to a list of
    values. If both ends are whole numbers, so are the values. A range may have a `step`."""


@dataclass(frozen=True)
class Search:
    """The file of a search."""

    spec: TuneFile
    bench: Bench  # the base and the keys of every trial, measured on held-out samples
    space: tuple[Dimension, ...]

    @property
    def seeds(self) -> Sequence[int]:
        """Seeds of every trial, in order."""
        return self.bench.seeds


def load_search(
    path: str | Path, overrides: Sequence[str] = (), search: Mapping[str, Any] | Sequence[str] = ()
) -> Search:
    """Read and check the file of a search, or the scenario that is searched.

    An override of a search key (``trials=50``) changes the search; any other is a scenario key for every
    trial. `search` are texts of ``--search``, or a table like the file's `search`.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"the scenario must be the path of a file, got {path!r}")
    path = find_shipped(path, "scenario")
    file, mapping = str(path), read_toml(path)
    if mapping.keys() & {"grid", "variants", "baseline"}:
        raise UserError(f"is a bench, not a search; run it with: fedkd bench {file}", file=file)
    if not mapping.keys() & {"base", "scenario", "search"}:
        mapping = {"name": mapping.get("name", path.stem), "scenario": mapping}
    fixed = apply_overrides(mapping, overrides, TuneFile.model_fields.keys() - {"name", "search"})
    more = dict(search) if isinstance(search, Mapping) else parse_search(search)
    with file_errors(file, TuneFile):
        spec = TuneFile.model_validate(mapping)
        if more:
            spec = spec.model_copy(update={"search": flat_search(spec.search) | more})
        return _read(spec, path, fixed)


def flat_search(search: Mapping[str, Any]) -> dict[str, Any]:
    """Return a `[search]` table with dotted keys."""
    return {
        found.key: list(found.choices)
        if found.range is None
        else found.range.model_dump(exclude_none=True, exclude_defaults=True)
        for found in (dimensions(search) if search else ())
    }


def _read(spec: TuneFile, path: Path, fixed: dict[str, Any]) -> Search:
    check_base_and_seeds(spec)
    check_metric(spec.metric)
    averaged = spec.metric.startswith(PREFIX + AVERAGE)
    refuse_if(spec.pruner == "forecast" and averaged, f"must be median or none with {spec.metric}", "pruner")
    space = dimensions(spec.search)
    folder, base = base_scenario(spec, path)
    for key in [*flatten(spec.set), *fixed]:
        varied = next((found.key for found in space if keys_overlap(key, found.key)), None)
        if varied is not None:
            raise UserError(f"is searched; it cannot be set for all trials ({varied})", key=key)
    seeds = spec.seeds
    if seeds is None:
        usual = base.get("seed", Scenario.model_fields["seed"].default)
        own = fixed.get("seed", flatten(spec.set).get("seed", usual))
        if not isinstance(own, int) or isinstance(own, bool) or own < 0:
            raise UserError(f"must be an integer ≥ 0, got {own!r}", key="seed")
        seeds = [own]
    bench_file = BenchFile(name=spec.name, scenario=base, seeds=seeds, set=spec.set, parallel=spec.parallel)
    shares = (spec.validation, value_at(base, "data.validation"), SHARE)
    share = next(share for share in shares if share is not None)
    bench = Bench(bench_file, base, folder, {"data.validation": share, **fixed}, str(path))
    return Search(spec, bench, space)


def dump_search(search: Search) -> str:
    """Return a search as one TOML file, with its base scenario and the overrides of the command line."""
    left_out = {"base", "scenario", "search"}
    told = search.spec.model_dump(mode="json", exclude_none=True, exclude_defaults=True, exclude=left_out)
    fixed = dict(search.bench.fixed)
    told |= {"validation": fixed.pop("data.validation"), "seeds": list(search.seeds)}
    if fixed:
        told["set"] = told.get("set", {}) | fixed
    varied = {"search": flat_search(search.spec.search)}
    return dump_file("search", told | varied | {"scenario": search.bench.base})


def search_json_schema() -> dict[str, Any]:
    """Return the JSON schema of a search; reading it checks keys of `set` and `search`."""
    schema = add_scenario_schema(TuneFile.model_json_schema(), "fedkd search")
    schema["properties"]["metric"]["enum"] = list(OBJECTIVES)
    schema["$defs"]["Range"] = Range.model_json_schema()
    varied = [{"$ref": "#/$defs/Range"}, {"type": "array", "minItems": 2}, {"type": "object"}]
    schema["properties"]["search"]["additionalProperties"] = {"anyOf": varied}
    return schema
