"""The best group of a comparison, and the groups without a measurable difference from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fedkd.report.metrics import Metric
from fedkd.report.statistics import LEVEL, Interval, discoveries, interval, paired_difference
from fedkd.report.study import Labels, Study, StudyRun, values_by_seed


@dataclass(frozen=True)
class Entry:
    """One metric of one group."""

    value: Interval | None = None  # mean over seeds; None if not recorded
    difference: Interval | None = None  # to the baseline, paired by seed; None for the baseline
    best: bool = False  # has the best mean of its block
    tied: bool = False  # the interval of the paired difference to the best group contains 0
    differs: bool = False  # significant among all differences of its metric in the table

    @property
    def p(self) -> float | None:
        """The p-value of the difference; None if there is no test."""
        return None if self.difference is None else self.difference.p


@dataclass(frozen=True)
class Row:
    """One group: its labels on block axes and compared axes, its seeds, and its metrics in order."""

    block: Labels
    group: Labels
    seeds: int
    entries: tuple[Entry, ...]


def compare(study: Study) -> list[Row]:
    """Return one row per group, block by block.

    The differences of one metric are a family of tests.
    """
    rows: list[Row] = []
    for block, groups in study.blocks.items():
        # A group with runs stopped on a forecast has seeds that are easier or harder than the others'.
        seeds = max(map(len, groups.values())) if study.stopped else 0
        columns = [_column(groups, metric, study.baseline, seeds) for metric in study.shown]
        for group, runs in groups.items():
            entries = tuple(column[group] for column in columns)
            rows.append(Row(block, group, len(runs), entries))
    marked = [mark_differences(family) for family in zip(*(row.entries for row in rows), strict=True)]
    return [
        replace(row, entries=entries) for row, entries in zip(rows, zip(*marked, strict=True), strict=True)
    ]


def mark_differences(family: Sequence[Entry]) -> list[Entry]:
    """Return the entries of one metric, with significant differences marked."""
    tested = {index: entry.p for index, entry in enumerate(family) if entry.p is not None}
    marks = dict(zip(tested, discoveries(list(tested.values())), strict=True))
    return [replace(entry, differs=marks.get(index, False)) for index, entry in enumerate(family)]


@dataclass(frozen=True)
class Tally:
    """Counts of tested differences in a table, and of intervals that exclude 0."""

    tested: int  # differences that vary over seeds
    excluding: int
    by_chance: float  # expected `excluding` if all groups are equal
    marked: int  # significant after the correction


def tally(rows: Sequence[Row]) -> Tally:
    """Count the differences of a table."""
    entries = [entry for row in rows for entry in row.entries if entry.p is not None]
    excluding = sum(bool(entry.difference and entry.difference.excludes_zero()) for entry in entries)
    marked = sum(entry.differs for entry in entries)
    return Tally(len(entries), excluding, (1.0 - LEVEL) * len(entries), marked)


def _column(
    groups: Mapping[Labels, tuple[StudyRun, ...]], metric: Metric, baseline: Labels, seeds: int
) -> dict[Labels, Entry]:
    """Return the entries of one metric for all groups of a block; those with fewer `seeds` are not ranked."""
    values = {group: values_by_seed(runs, metric.name) for group, runs in groups.items()}
    means = {group: interval(list(by_seed.values())) for group, by_seed in values.items() if by_seed}
    rankable = {g for g, runs in groups.items() if len(runs) >= seeds and not all(r.is_bound for r in runs)}
    ranked = {group: mean.mean for group, mean in means.items() if group in rankable}
    best = _best(ranked, metric)
    reference = values.get(baseline, {})
    column = {}
    for group, by_seed in values.items():
        difference = paired_difference(by_seed, reference) if baseline and group != baseline else None
        tied = group in ranked and _tied(group, best, values)
        column[group] = Entry(means.get(group), difference, group in best, tied)
    return column


def _best(means: Mapping[Labels, float], metric: Metric) -> set[Labels]:
    """Return the groups with the best mean, several if equal; none without a ranking."""
    if metric.better is None or len(means) < 2:
        return set()
    top = (max if metric.better == "higher" else min)(means.values())
    return {group for group, mean in means.items() if mean == top}


def _tied(group: Labels, best: set[Labels], values: Mapping[Labels, Mapping[int, float]]) -> bool:
    if not best or group in best:
        return False
    differences = [paired_difference(values[group], values[other]) for other in best]
    return any(d is not None and d.excludes_zero() is False for d in differences)
