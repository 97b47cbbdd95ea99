"""Metrics that need a second run: cells over streams beside their siblings with a reference learner.

A cell's siblings have its seed, its stream and its level on every axis but those that set the learner, be
they scenario keys or named variants. `intransigence` is measured against what the one with the learner
`joint` reached, `gain_over_single` against the one with `single`; where several have that learner none of
them is the reference, since nothing says which is meant.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import replace
from math import isnan
from statistics import fmean

from fedkd.benchmark.cells import Axis, Cell, what_decides_data
from fedkd.benchmark.results import FinishedCell
from fedkd.continual.outcome import StreamOutcome, stream_outcome
from fedkd.plan.build_schedule import build_schedule
from fedkd.plan.evaluated import counted_clients
from fedkd.plan.held_models import held_models
from fedkd.tracking.recorder import read_metrics

RELATIVE = ("intransigence", "gain_over_single")


def beside_references(finished: Sequence[FinishedCell], axes: Sequence[Axis]) -> list[FinishedCell]:
    """Return the cells, in order, with what those that are done reached relative to their references."""
    shared = [axis.name for axis in axes if not _sets_learner(axis)]
    siblings: defaultdict[Hashable, list[FinishedCell]] = defaultdict(list)
    for cell in finished:
        if cell.cell.scenario.continual is not None:
            siblings[_what_siblings_share(cell.cell, shared)].append(cell)
    relative: dict[str, dict[str, float]] = {}
    for cells in siblings.values():
        joint, single = _reference(cells, "joint"), _reference(cells, "single")
        if joint is None and single is None:
            continue
        relative |= {cell.cell.hash: _relative(_outcome(cell, joint, single)) for cell in cells if cell.done}
    return [replace(cell, relative=relative.get(cell.cell.hash, {})) for cell in finished]


def _sets_learner(axis: Axis) -> bool:
    keys = {key.removesuffix("!") for level in axis.levels for key in level.changes}
    return not keys.isdisjoint(("continual", "continual.learner"))


def _what_siblings_share(cell: Cell, axes: Sequence[str]) -> Hashable:
    # Variants may change more than the learner: accuracies on other tasks or samples are no reference.
    return cell.seed, tuple(cell.levels[name].label for name in axes), what_decides_data(cell.scenario)


def _reference(siblings: Sequence[FinishedCell], learner: str) -> StreamOutcome | None:
    found = [cell for cell in siblings if _learner(cell) == learner]
    return _outcome(found[0]) if len(found) == 1 and found[0].done else None


def _learner(cell: FinishedCell) -> str:
    assert cell.cell.scenario.continual is not None
    return cell.cell.scenario.continual.learner


def _outcome(
    cell: FinishedCell, joint: StreamOutcome | None = None, single: StreamOutcome | None = None
) -> StreamOutcome:
    scenario, schedule = cell.cell.scenario, build_schedule(cell.cell.scenario)
    return stream_outcome(
        read_metrics(cell.folder),
        scenario,
        schedule.every_course(),
        counted=counted_clients(scenario),
        models=held_models(scenario, schedule),
        joint=joint,
        single=single,
    )


def _relative(outcome: StreamOutcome) -> dict[str, float]:
    """Return the means, over the clients that have them, of what there is thanks to references."""
    means = {}
    for name, per_client in outcome.figures().items():
        values = [value for value in per_client.values() if not isnan(value)]
        if name.startswith(RELATIVE) and values:
            means[name] = fmean(values)
    return means
