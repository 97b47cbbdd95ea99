"""Write the tables of a page of results anew, from the folders of its benches.

    python scripts/result_tables.py docs/every-strategy.md runs/bench-every-strategy-mixed …

A page says by a comment where a table belongs and what is in it; what stands between it and the closing one
is replaced. Tables of benches that are not named stay as they are.

    <!-- results: every-strategy-mixed; side by side; columns = setting; data.dataset = mnist -->
    <!-- end of results -->

The first word is the name of the bench, the second the form of the table:

- ``side by side``: a row a strategy; for every level of the axis `columns` its local and global accuracy,
  before and after fusion (``+1.0 ± 2.0 → −3.0 ± 1.0``; one value: they are the same).
- ``long``: a row for each setting and strategy; accuracy, and in brackets the difference.
- ``at a glance``: a row a strategy; differences averaged over all settings, and in brackets the number of
  settings in which it is significantly above and below the baseline.

- ``recipe``: a row a strategy that is there twice, as `A` and as `A, joint`; what the recipe adds to it, with
  numbers of settings as above.

Then come `rows = A | B` (these alone), `but = A | B` (all but these), `baseline = A`, and levels of
axes that are held fixed. All differences of one metric in one table are a family, as in `table.md`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fedkd.errors import UserError
from fedkd.report.comparison import Entry, Row, compare, mark_differences, tally
from fedkd.report.metrics import find_metric
from fedkd.report.statistics import paired_difference
from fedkd.report.study import Labels, Study, read_study, values_by_seed
from fedkd.report.tables import DIFFERS, MISSING, TIED, difference_text, number_text, tally_text

MARKED = re.compile(r"(<!-- results: (.*?) -->\n).*?(<!-- end of results -->)", re.DOTALL)
MOMENTS = {
    "local": ("accuracy_before_fusion_local", "accuracy_local"),
    "global": ("accuracy_before_fusion_global", "accuracy_global"),
}
ACCURACIES = tuple(name for pair in MOMENTS.values() for name in pair)
TITLES = tuple(f"{split}, {moment} fusion" for split in MOMENTS for moment in ("before", "after"))
JOINT = ", joint"
"""Ends the name of a strategy under the joint recipe."""
WITH_LABELS = re.compile(r"\*($|,)")
"""Strategies with a star have labels of the transfer set: they are shown and not ranked."""


@dataclass(frozen=True)
class Wanted:
    """What a comment asks for.

    Attributes:
        bench: Name of the bench.
        form: Of the table.
        options: `columns`, `rows`, `but`, `baseline`.
        fixed: Axis to level.
    """

    bench: str
    form: str
    options: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def read(text: str) -> Wanted:
        """Read the words of a comment."""
        bench, form, *others = (part.strip() for part in text.split(";"))
        pairs = {key.strip(): value.strip() for key, _, value in (other.partition("=") for other in others)}
        own = {key: value for key, value in pairs.items() if key in ("columns", "rows", "but", "baseline")}
        return Wanted(bench, form, own, {key: value for key, value in pairs.items() if key not in own})


def chosen(study: Study, wanted: Wanted) -> Study:
    """Return the part of a study that a table is about, without the axes that are held fixed.

    Raises:
        UserError: An axis or a level that the study does not have.
    """
    axes = {axis.name: axis for axis in study.axes}
    for name, level in wanted.fixed.items():
        if name not in axes or level not in axes[name].levels:
            raise UserError(f"bench '{study.name}' has no {name} = {level}")
    rows = [axis for axis in study.axes if axis.name in study.compared]
    kept = set(rows[-1].levels)
    if "rows" in wanted.options:
        kept = {label.strip() for label in wanted.options["rows"].split("|")}
    kept -= {label.strip() for label in wanted.options.get("but", "").split("|")}
    if unknown := kept - set(rows[-1].levels):
        raise UserError(f"bench '{study.name}' has no strategy {', '.join(sorted(unknown))}")
    at_row = [axis.name for axis in study.axes].index(rows[-1].name)
    places = [index for index, axis in enumerate(study.axes) if axis.name not in wanted.fixed]
    runs = tuple(
        replace(
            run,
            levels=tuple(run.levels[index] for index in places),
            is_bound=run.is_bound or WITH_LABELS.search(run.levels[at_row]) is not None,
        )
        for run in study.runs
        if run.levels[at_row] in kept
        and all(dict(zip(axes, run.levels, strict=True))[n] == level for n, level in wanted.fixed.items())
    )
    levels = {rows[-1].name: tuple(label for label in rows[-1].levels if label in kept)}
    baseline = (wanted.options["baseline"],) if "baseline" in wanted.options else study.baseline
    return replace(
        study,
        axes=tuple(replace(axis, levels=levels.get(axis.name, axis.levels)) for axis in study.axes
                   if axis.name not in wanted.fixed),
        baseline=baseline,
        metrics=tuple(name for name in ACCURACIES if name in study.metrics),
        runs=runs,
    )  # fmt: skip


def side_by_side(study: Study, rows: Sequence[Row], wanted: Wanted) -> list[list[str]]:
    """Return the lines of a table with a pair of columns for each level of an axis."""
    (columns,) = (axis for axis in study.axes if axis.name == wanted.options["columns"])
    titles = [f"{level}: {title}" for level in columns.levels for title in MOMENTS]
    table = [["strategy", *titles, "up (MB)"]]
    by_group: dict[Labels, dict[Labels, Row]] = {}
    for row in rows:
        by_group.setdefault(row.group, {})[row.block] = row
    for group, blocks in by_group.items():
        cells = [cell for level in columns.levels for cell in _pairs(blocks[(level,)], study)]
        table.append([", ".join(group), *cells, _megabytes(study, group)])
    return table


def _pairs(row: Row, study: Study) -> Iterator[str]:
    entries = dict(zip(study.metrics, row.entries, strict=True))
    for names in MOMENTS.values():
        told = [_told(entries[name], name, brackets=False) for name in names if name in entries]
        yield " → ".join(dict.fromkeys(told))


def long(study: Study, rows: Sequence[Row], wanted: Wanted) -> list[list[str]]:
    """Return the lines of a table with a row for each setting and strategy."""
    shown = dict(zip(ACCURACIES, TITLES, strict=True))
    titles = [*map(study.title, study.block_axes), "strategy", *(shown[name] for name in study.metrics)]
    lines = [
        [*row.block, ", ".join(row.group)]
        + [_told(entry, name, brackets=True) for name, entry in zip(study.metrics, row.entries, strict=True)]
        for row in rows
    ]
    return [titles, *lines]


def at_a_glance(study: Study, rows: Sequence[Row], wanted: Wanted) -> list[list[str]]:
    """Return the lines of a table of mean differences and numbers of settings, a row a strategy."""
    shown = dict(zip(ACCURACIES, TITLES, strict=True))
    table = [["strategy", *(shown[name] for name in study.metrics), "up (MB)"]]
    by_group: dict[Labels, list[Row]] = {}
    for row in rows:
        by_group.setdefault(row.group, []).append(row)
    for group, own in by_group.items():
        if group != study.baseline:
            columns = zip(*(row.entries for row in own), strict=True)
            table.append([", ".join(group), *map(_counted, columns), _megabytes(study, group)])
    return table


def _counted(entries: Sequence[Entry]) -> str:
    means = [entry.difference.mean for entry in entries if entry.difference is not None]
    if not means:
        return MISSING
    signs = [entry.difference.mean > 0 for entry in entries if entry.differs and entry.difference is not None]
    mean = round(100 * fmean(means), 1) + 0.0
    return _signed(f"{mean:+.1f} ({sum(signs)} / {len(signs) - sum(signs)})")


def _told(entry: Entry, name: str, *, brackets: bool) -> str:
    shown = find_metric(name)
    if entry.value is None:
        return MISSING
    difference = _signed(difference_text(entry, shown)) if entry.difference is not None else ""
    text, added = number_text(entry.value, shown), ""
    if brackets and difference:
        text, added = number_text(replace(entry.value, half=None), shown), f" ({difference})"
    elif difference:
        text = difference
    return f"**{text}**{added}" if entry.best else f"{text}{added}{f' {TIED}' * entry.tied}"


def _megabytes(study: Study, group: Labels) -> str:
    sent = [run.final["bytes_up"] for run in study.runs if study.group_of(run) == group and run.final]
    return f"{fmean(sent) / 1e6:.2f}" if sent else MISSING


def _signed(text: str) -> str:
    return text.replace("-", "−")


def with_and_without(study: Study) -> list[Row]:
    """Return a row a setting and strategy: what the recipe adds to it, paired by seed."""
    found = []
    for block, groups in study.blocks.items():
        for (*others, label), runs in groups.items():
            joint = groups.get((*others, f"{label}{JOINT}"))
            if joint is not None:
                pairs = [(values_by_seed(joint, name), values_by_seed(runs, name)) for name in study.metrics]
                entries = tuple(Entry(difference=paired_difference(*pair)) for pair in pairs)
                found.append(Row(block, (*others, label), len(runs), entries))
    families = [mark_differences(family) for family in zip(*(row.entries for row in found), strict=True)]
    return [
        replace(row, entries=entries) for row, entries in zip(found, zip(*families, strict=True), strict=True)
    ]


FORMS: Mapping[str, Callable[[Study, Sequence[Row], Wanted], list[list[str]]]] = {
    "side by side": side_by_side,
    "long": long,
    "at a glance": at_a_glance,
    "recipe": at_a_glance,
}


def table_text(study: Study, wanted: Wanted) -> str:
    """Return a table as Markdown, with the line below it that counts its differences.

    Raises:
        UserError: The study does not have what is wanted.
    """
    if wanted.form not in FORMS:
        raise UserError(f"no form '{wanted.form}'; allowed: {', '.join(FORMS)}")
    part = chosen(study, wanted)
    of_table = with_and_without(part) if wanted.form == "recipe" else compare(part)
    titles, *lines = FORMS[wanted.form](part, of_table, wanted)
    cells = [titles, ["---"] * len(titles), *lines]
    text = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in cells)
    told = tally(of_table)
    counted = f"\n\n{tally_text(told).removesuffix('.')} ({DIFFERS})." if told.tested else ""
    return f"{text}{counted}\n"


def renewed(page: str, studies: Mapping[str, Study]) -> str:
    """Return a page with the tables of some benches written anew."""

    def table(found: re.Match[str]) -> str:
        wanted = Wanted.read(found[2])
        if wanted.bench not in studies:
            return found[0]
        return f"{found[1]}\n{table_text(studies[wanted.bench], wanted)}\n{found[3]}"

    return MARKED.sub(table, page)


def main() -> int:
    """Write tables anew; exit status 2: something is not there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    asked = parser.parse_args()
    try:
        studies = {study.name: study for study in map(read_study, asked.folders)}
        text = renewed(asked.page.read_text(encoding="utf-8"), studies)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    asked.page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
