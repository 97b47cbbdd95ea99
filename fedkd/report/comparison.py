"""Who is best, and who cannot be told from the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedkd.report.metrics import Metric
from fedkd.report.statistics import Interval, interval, paired_difference
from fedkd.report.study import Labels, Study, StudyRun, values_by_seed


@dataclass(frozen=True)
class Entry:
    """One metric of one group.

    Attributes:
        value: Mean over seeds with its interval; None: not recorded.
        difference: To the baseline, paired by seed; None: there is none, or this is the baseline.
        best: Whether no other group of the block has a better mean.
        tied: Whether the interval of the paired difference to the best group contains 0.
    """

    value: Interval | None = None
    difference: Interval | None = None
    best: bool = False
    tied: bool = False


@dataclass(frozen=True)
class Row:
    """One group: its labels on the block axes and on the compared axes, its seeds, its metrics in order."""

    block: Labels
    group: Labels
    seeds: int
    entries: tuple[Entry, ...]


def compare(study: Study) -> list[Row]:
    """Return one row per group, block by block."""
    rows = []
    for block, groups in study.blocks.items():
        columns = [_column(groups, metric, study.baseline) for metric in study.shown]
        for group, runs in groups.items():
            entries = tuple(column[group] for column in columns)
            rows.append(Row(block, group, len(runs), entries))
    return rows


def _column(
    groups: Mapping[Labels, tuple[StudyRun, ...]], metric: Metric, baseline: Labels
) -> dict[Labels, Entry]:
    """Return one metric of all groups of a block."""
    values = {group: values_by_seed(runs, metric.name) for group, runs in groups.items()}
    means = {group: interval(list(by_seed.values())) for group, by_seed in values.items() if by_seed}
    ranked = {group: mean.mean for group, mean in means.items() if not _is_bound(groups[group])}
    best = _best(ranked, metric)
    reference = values.get(baseline, {})
    column = {}
    for group, by_seed in values.items():
        difference = paired_difference(by_seed, reference) if baseline and group != baseline else None
        tied = group in ranked and _tied(group, best, values)
        column[group] = Entry(means.get(group), difference, group in best, tied)
    return column


def _is_bound(runs: Sequence[StudyRun]) -> bool:
    return all(run.is_bound for run in runs)


def _best(means: Mapping[Labels, float], metric: Metric) -> set[Labels]:
    """Return the groups with the best mean: several if they are equal, none if there is nothing to rank."""
    if metric.better is None or len(means) < 2:
        return set()
    top = (max if metric.better == "higher" else min)(means.values())
    return {group for group, mean in means.items() if mean == top}


def _tied(group: Labels, best: set[Labels], values: Mapping[Labels, Mapping[int, float]]) -> bool:
    if not best or group in best:
        return False
    differences = [paired_difference(values[group], values[other]) for other in best]
    return any(d is not None and d.excludes_zero() is False for d in differences)
