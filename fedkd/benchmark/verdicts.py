"""Verdicts of a bench: claims about its settings, each with pass marks over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from fedkd.errors import UserError, did_you_mean
from fedkd.report import Interval, Study, StudyRun, paired_difference
from fedkd.scenario import Section

VERDICTS = "verdicts.md"


class Mark(Section):
    """One pass mark: bounds of a metric, or of its seed-paired difference between two settings."""

    of: str
    """The setting: its labels on the compared axes, joined by a comma and a space."""
    minus: str | None = None
    """The setting whose metric is subtracted, seed by seed; absent: none."""
    metric: str
    """A metric of the bench's runs, such as `bwt`, or `accuracy_task_K`: the final accuracy on task K, from
    1, on the common test set."""
    above: float | None = None
    """The lower end of the 95 % interval is above this value."""
    least: float | None = None
    """The mean over seeds is at least this value."""
    most: float | None = None
    """The mean over seeds is at most this value."""
    equals: float | None = None
    """Every seed has this value exactly."""


class Verdict(Section):
    """A claim that holds if all its marks are passed."""

    name: str
    """The claim in words."""
    marks: Annotated[list[Mark], Field(min_length=1)]
    """Its pass marks."""


@dataclass(frozen=True)
class Measured:
    """A mark with its interval over seeds; None: no seed has both settings and the metric."""

    mark: Mark
    interval: Interval | None
    values: tuple[float, ...]

    @property
    def passed(self) -> bool:
        """Whether the bounds hold."""
        if self.interval is None:
            return False
        mark, mean = self.mark, self.interval.mean
        lower = mean - (self.interval.half or 0.0)
        return (
            (mark.above is None or (self.interval.half is not None and lower > mark.above))
            and (mark.least is None or mean >= mark.least)
            and (mark.most is None or mean <= mark.most)
            and (mark.equals is None or all(value == mark.equals for value in self.values))
        )


def check_verdicts(verdicts: Sequence[Verdict], settings: Sequence[str], file: str) -> None:
    """Refuse marks about settings that the bench does not have."""
    for n, verdict in enumerate(verdicts):
        for m, mark in enumerate(verdict.marks):
            for key, named in (("of", mark.of), ("minus", mark.minus)):
                if named is not None and named not in settings:
                    told = f"no setting '{named}'; {did_you_mean(named, settings)}"
                    raise UserError(told, key=f"verdicts.{n}.marks.{m}.{key}", file=file)


def measure(mark: Mark, runs: Mapping[str, Sequence[StudyRun]]) -> Measured:
    """Return a mark with its values over the seeds of its settings."""
    own = _values(mark.metric, runs.get(mark.of, ()))
    others = _values(mark.metric, runs.get(mark.minus, ())) if mark.minus else dict.fromkeys(own, 0.0)
    values = tuple(own[seed] - others[seed] for seed in own if seed in others)
    return Measured(mark, paired_difference(own, others), values)


def verdict_table(verdicts: Sequence[Verdict], study: Study) -> str:
    """Return the verdicts as a table in Markdown, a row per mark."""
    runs: dict[str, list[StudyRun]] = {}
    for run in study.runs:
        runs.setdefault(", ".join(run.levels), []).append(run)
    lines = [
        "| claim | verdict | metric | setting | measured | mark |",
        "| --- | --- | --- | --- | --: | --- |",
    ]
    for verdict in verdicts:
        found = [measure(mark, runs) for mark in verdict.marks]
        word = "holds" if all(each.passed for each in found) else "fails"
        for n, each in enumerate(found):
            setting = each.mark.of + (f" − {each.mark.minus}" if each.mark.minus else "")
            claim = [verdict.name, f"**{word}**"] if n == 0 else ["", ""]
            told = [each.mark.metric, setting, _number(each.interval), _bounds(each)]
            lines.append("| " + " | ".join([*claim, *told]) + " |")
    held = sum(all(measure(mark, runs).passed for mark in verdict.marks) for verdict in verdicts)
    return "\n".join(
        [*lines, "", f"{held} of {len(verdicts)} claims hold. ± is the 95 % interval over seeds."]
    )


def _values(metric: str, runs: Sequence[StudyRun]) -> dict[int, float]:
    return {run.seed: run.final[metric] for run in runs if metric in run.final}


def _number(value: Interval | None) -> str:
    if value is None:
        return "–"
    half = "" if value.half is None else f" ± {100 * value.half:.1f}"
    return f"{100 * value.mean:+.1f}{half} points"


def _bounds(each: Measured) -> str:
    mark = each.mark
    told = {"interval >": mark.above, "≥": mark.least, "≤": mark.most, "=": mark.equals}
    words = ", ".join(f"{sign} {100 * value:g}" for sign, value in told.items() if value is not None)
    return f"{words} {'✓' if each.passed else '✗'}"
