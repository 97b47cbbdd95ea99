"""Three sentences on a bench: the difference of the best setting, all differences, and the cost."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from fedkd.report.comparison import compare
from fedkd.report.metrics import Metric
from fedkd.report.statistics import FALSE_DISCOVERY_RATE, Interval, interval, paired_difference
from fedkd.report.study import Labels, Study, values_by_seed
from fedkd.report.tables import number_text
from fedkd.tracking import count_noun, format_bytes, format_duration

BySeed = Mapping[Labels, Mapping[int, float]]  # group to seed to value
OF_REGRESSION = tuple(f"{name}_{split}" for name in ("rmse", "mae", "r2") for split in ("global", "local"))
BARE = re.compile(r"true|false|[+-]?\d[\d.e+-]*", re.IGNORECASE)  # labels that say nothing without their axis


@dataclass(frozen=True)
class Duel:
    """The best group and the one that it is compared with."""

    best: Labels
    other: Labels
    candidates: int  # groups that the best one was chosen among
    is_baseline: bool  # whether the other one is the bench's baseline


def bench_findings(study: Study) -> list[str]:
    """Return the sentences; none without a finished run, fewer if there is nothing to compare."""
    shown = main_metric(study)
    values = {} if shown is None else means_by_seed(study, shown)
    if shown is None or not values:
        return []
    duel = _duel(study, shown, values)
    if duel is None:
        (group, by_seed), *_ = values.items()
        reached = interval(list(by_seed.values()))
        found = f"The {_title(shown)} is {_amount(reached, shown)} {shown.unit}".rstrip()
        return [f"{found} ({_seeds(study, reached)}).", _cost(study, [group])]
    told = (_difference(study, shown, values, duel), _others(study, shown, values, duel))
    return [sentence for sentence in (*told, _cost(study, [duel.best, duel.other])) if sentence]


def main_metric(study: Study) -> Metric | None:
    """Return the metric of the sentences: global accuracy, else that of a stream, else the first."""
    ranked = [shown for shown in study.shown if shown.better is not None]
    wanted = [shown for shown in ranked if shown.name == "accuracy_global"]
    wanted += [shown for shown in ranked if shown.name.startswith("average_accuracy")]
    wanted += [shown for shown in ranked if shown.name in OF_REGRESSION]
    return next(iter([*wanted, *ranked]), None)


def means_by_seed(study: Study, shown: Metric) -> BySeed:
    """Return each group's mean over blocks, seed by seed, of groups and seeds that every block has."""
    tables = [
        {group: values_by_seed(runs, shown.name) for group, runs in groups.items()}
        for groups in study.blocks.values()
    ]
    tables = [table for table in tables if any(table.values())]
    found = {}
    for group in tables[0] if tables else ():
        seeds = set.intersection(*(set(table[group]) for table in tables))
        if seeds:
            found[group] = {seed: fmean(table[group][seed] for table in tables) for seed in sorted(seeds)}
    return found


def bounds(study: Study) -> set[Labels]:
    """Return the groups that are no federation."""
    return {study.group_of(run) for run in study.runs if run.is_bound}


def _duel(study: Study, shown: Metric, values: BySeed) -> Duel | None:
    """Return the best group and the baseline, else the second best; bounds take no part."""
    sign = -1 if shown.better == "lower" else 1
    real = [group for group in values if group not in bounds(study)]
    means = {group: sign * fmean(values[group].values()) for group in real}
    order = sorted(means, key=lambda group: -means[group])
    known = study.baseline in values
    candidates = [group for group in order if group != study.baseline]
    if not candidates or (not known and len(candidates) < 2):
        return None
    other = study.baseline if known else candidates[1]
    shared = values[candidates[0]].keys() & values[other].keys()
    return Duel(candidates[0], other, len(candidates), known) if shared else None


def _difference(study: Study, shown: Metric, values: BySeed, duel: Duel) -> str:
    """Return the sentence on the best group's difference, paired by seed."""
    found = paired_difference(values[duel.best], values[duel.other])
    assert found is not None
    best, other = name_of(study, duel.best), name_of(study, duel.other)
    several = duel.candidates > 1
    beside = _beside(study, shown, duel)
    if found.excludes_zero() is False:
        whom = f"{other} and {f'the best of {_many(study, duel.candidates)}, ' * several}{best}"
        told = f"No measurable difference in {_title(shown)} between {whom}: {_signed(found, shown)}"
        return f"{told} ({_seeds(study, found)}){beside}."
    second = "" if duel.is_baseline else "the second best, "
    change = f"{'raised' if found.mean > 0 else 'lowered'} {_title(shown)} by {_size(found, shown)}"
    worse = (found.mean < 0) != (shown.better == "lower")
    if several and worse:
        who = f"None of {_many(study, duel.candidates)} is better than {other}: the best, {best},"
        return f"{who} {change} ({_seeds(study, found)}){beside}."
    who = f"The best of {_many(study, duel.candidates)}, {best}," if several else best
    return f"{who} {change} over {second}{other} ({_seeds(study, found)}){beside}."


def _beside(study: Study, shown: Metric, duel: Duel) -> str:
    """Return the clause on local accuracy, if the bench shows it beside the global one."""
    local = next((metric for metric in study.shown if metric.name == "accuracy_local"), None)
    if shown.name != "accuracy_global" or local is None:
        return ""
    values = means_by_seed(study, local)
    found = paired_difference(values.get(duel.best, {}), values.get(duel.other, {}))
    if found is None:
        return ""
    if found.excludes_zero() is False:
        return f"; no measurable difference in the local one ({_signed(found, local)})"
    return f"; the local one changed by {_signed(found, local)}"


def _others(study: Study, shown: Metric, values: BySeed, duel: Duel) -> str:
    """Return the sentence on all settings: better and worse ones, or those tied with the best."""
    sign = -1 if shown.better == "lower" else 1
    best, other = name_of(study, duel.best), name_of(study, duel.other)
    if not duel.is_baseline:
        rest = [group for group in values if group != duel.best and group not in bounds(study)]
        found = [paired_difference(values[duel.best], values[group]) for group in rest]
        tied = sum(difference is not None and difference.excludes_zero() is False for difference in found)
        told = f"{tied} of {len(rest)} others show no measurable difference from {best}."
        return told if any(of is not None and of.half is not None for of in found) else ""
    at = study.shown.index(shown)
    compared = [
        (sign * entry.difference.mean, row, entry)
        for row, entry in ((row, row.entries[at]) for row in compare(study))
        if entry.difference is not None and row.group not in bounds(study)
    ]
    if len(compared) == 1:
        pairs = [(value, values[duel.other].get(seed)) for seed, value in values[duel.best].items()]
        gains = [sign * (ours - theirs) for ours, theirs in pairs if theirs is not None]
        wins = sum(gain > 0 for gain in gains)
        return f"{best} is better with {wins} of {len(gains)} seeds." if len(gains) > 1 else ""
    tested = any(entry.p is not None for _, _, entry in compared)
    sizes = [size for size, _, entry in compared if entry.differs or not tested]
    better, worse = sum(size > 0 for size in sizes), sum(size < 0 for size in sizes)
    told = (
        f"{'Significantly better' if tested else 'Better'} than {other}: {better} of {len(compared)} settings"
    )
    told += f", worse: {worse}"
    if tested:
        told += f" (false discovery rate {100 * FALSE_DISCOVERY_RATE:.0f} %)"
    size, row, entry = min(compared, key=lambda one: one[0])
    if size < 0 and entry.difference is not None:
        where = f" at {study.block_title(row.block)}" if row.block else ""
        told += f"; the worst is {name_of(study, row.group)}{where} ({_signed(entry.difference, shown)})"
    return f"{told}."


def _cost(study: Study, groups: Sequence[Labels]) -> str:
    """Return the sentence on bytes and time of a run, means over blocks and seeds."""
    parts = []
    for group in groups:
        runs = [run for run in study.runs if study.group_of(run) == group]
        sent = fmean(run.traffic[-1][1] if run.traffic else 0 for run in runs)
        part = f"with {name_of(study, group)} transferred {format_bytes(sent) if sent else 'nothing'}"
        seconds = [run.final["seconds"] for run in runs if "seconds" in run.final]
        if seconds:
            part += f" and took {format_duration(fmean(seconds))}"
        parts.append(part)
    return f"A run {', one '.join(parts)}."


def name_of(study: Study, group: Labels) -> str:
    """Return a group for a sentence, with the axis where a label is a number or a truth value."""
    pairs = zip(study.compared_axes, group, strict=True)
    named = (f"{study.title(axis)} = {label}" if BARE.fullmatch(label) else label for axis, label in pairs)
    return ", ".join(named)


def _title(shown: Metric) -> str:
    title, _, test = shown.title.partition(", ")
    return f"{title} ({test})" if test else title


def _many(study: Study, number: int) -> str:
    if len(study.compared_axes) != 1:
        return f"{number} settings"
    title = study.title(study.compared_axes[0])
    return f"{number} {title[:-1]}ies" if title.endswith("y") else f"{number} {title}s"


def _seeds(study: Study, found: Interval) -> str:
    over = [study.title(axis) for axis in study.block_axes if len(axis.levels) > 1]
    mean = f"mean over {' and '.join(over)}, " if over else ""
    return f"{mean}{count_noun(found.seeds, 'seed')}{', no interval' * (found.half is None)}"


def _size(found: Interval, shown: Metric) -> str:
    """Format the size of a difference: `4.1 ± 1.2 points`."""
    size = Interval(abs(found.mean), found.half, found.seeds)
    return f"{_amount(size, shown)} {shown.difference_unit}".rstrip()


def _signed(found: Interval, shown: Metric) -> str:
    return f"{_amount(found, shown, sign='+')} {shown.difference_unit}".rstrip()


def _amount(found: Interval, shown: Metric, sign: str = "") -> str:
    return number_text(found, shown, sign).replace("-", "−")
