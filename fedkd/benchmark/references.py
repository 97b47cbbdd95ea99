"""Metrics that need a second run: `intransigence` and `gain_over_single` of cells over streams.

Siblings share the seed, the stream and all levels but the learner's. The only sibling with the learner
`joint` is the reference of `intransigence`, that with `single` of `gain_over_single`.
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import replace
from math import isnan
from statistics import fmean

from fedkd.benchmark.cells import Axis, data_key
from fedkd.benchmark.results import FinishedCell
from fedkd.continual import StreamOutcome
from fedkd.plan import build_schedule
from fedkd.report import outcome_of_rows
from fedkd.tracking import read_metrics

RELATIVE = ("intransigence", "gain_over_single")
LEARNER = ("continual", "continual!", "continual.learner", "continual.learner!")  # keys that set the learner


def add_reference_metrics(finished: Sequence[FinishedCell], axes: Sequence[Axis]) -> list[FinishedCell]:
    """Return the cells, in order; finished ones get metrics relative to their references."""
    changed = {axis.name: {key for level in axis.levels for key in level.changes} for axis in axes}
    shared = [name for name, keys in changed.items() if keys.isdisjoint(LEARNER)]
    siblings: defaultdict[Hashable, list[FinishedCell]] = defaultdict(list)
    for finished_cell in finished:
        cell = finished_cell.cell
        if cell.scenario.continual is not None:
            levels = tuple(cell.levels[name].label for name in shared)
            # Variants may change more than the learner; a reference has the same tasks and samples.
            siblings[cell.seed, levels, data_key(cell.scenario)].append(finished_cell)
    relative: dict[str, dict[str, float]] = {}
    for cells in siblings.values():
        joint, single = _reference(cells, "joint"), _reference(cells, "single")
        if joint is None and single is None:
            continue
        relative |= {each.cell.hash: _relative(_outcome(each, joint, single)) for each in cells if each.done}
    return [replace(each, relative=relative.get(each.cell.hash, {})) for each in finished]


def _reference(siblings: Sequence[FinishedCell], learner: str) -> StreamOutcome | None:
    found = [cell for cell in siblings if (own := cell.cell.scenario.continual) and own.learner == learner]
    return _outcome(found[0]) if len(found) == 1 and found[0].done else None


def _outcome(
    cell: FinishedCell, joint: StreamOutcome | None = None, single: StreamOutcome | None = None
) -> StreamOutcome:
    rows, scenario = read_metrics(cell.folder), cell.cell.scenario
    return outcome_of_rows(rows, scenario, build_schedule(scenario), joint=joint, single=single)


def _relative(outcome: StreamOutcome) -> dict[str, float]:
    """Return the means of relative metrics over the clients that have them."""
    means = {}
    for name, per_client in outcome.figures().items():
        values = [value for value in per_client.values() if not isnan(value)]
        if name.startswith(RELATIVE) and values:
            means[name] = fmean(values)
    return means
