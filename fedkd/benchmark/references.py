"""Metrics that need a second run.

`intransigence` and `gain_over_single` are of cells over streams. Siblings share the seed, the stream and all
levels but the learner's. The only sibling with the learner `joint` is the reference of `intransigence`, that
with `single` of `gain_over_single`.

`share_below_baseline_local` and `_global` compare clients with themselves in the baseline's cell of the same
seed and the same levels of all other axes.
"""

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from math import isnan
from statistics import fmean

from fedkd.benchmark.cells import Axis, Cell, data_key
from fedkd.benchmark.results import FinishedCell
from fedkd.continual import StreamOutcome
from fedkd.plan import build_schedule, counted_clients
from fedkd.report import outcome_of_rows
from fedkd.tracking import read_metrics

SHARE_BELOW = "share_below_baseline"
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


def add_share_below(
    finished: Sequence[FinishedCell], compared: Sequence[str], baseline: Mapping[str, str]
) -> list[FinishedCell]:
    """Return the cells, in order, with the shares of clients less accurate than in the baseline.

    Args:
        compared: Names of the axes along which cells are compared.
        baseline: Label of the baseline's level on each of these axes.
    """
    own = {name: baseline[name] for name in compared if name in baseline}

    def setting(cell: Cell) -> Hashable:
        return cell.seed, tuple(level.label for name, level in cell.levels.items() if name not in own)

    references = {
        setting(each.cell): _last_accuracies(each)
        for each in finished
        if each.done and all(each.cell.levels[name].label == label for name, label in own.items())
    }
    found = []
    for each in finished:
        reference, shares = references.get(setting(each.cell), {}), dict[str, float]()
        for split, theirs in reference.items() if each.done else ():
            ours = _last_accuracies(each).get(split, {})
            if shared := ours.keys() & theirs.keys():
                shares[f"{SHARE_BELOW}_{split}"] = fmean(ours[client] < theirs[client] for client in shared)
        found.append(replace(each, relative=each.relative | shares))
    return found


def _last_accuracies(cell: FinishedCell) -> dict[str, dict[int, float]]:
    """Return each counted client's accuracy in the last round, by split."""
    scenario, found = cell.cell.scenario, dict[str, dict[int, float]]()
    counted = counted_clients(scenario)
    last = (scenario.rounds, None, "accuracy")
    for row in read_metrics(cell.folder):
        client, value = row["client"], row["value"]
        if (row["round"], row["task"], row["metric"]) == last and client in counted and value is not None:
            found.setdefault(row["split"], {})[client] = value
    return found


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
