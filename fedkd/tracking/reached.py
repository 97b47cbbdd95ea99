"""When a federation reached an accuracy, on the simulated clock."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fedkd.tracking.recorder import MetricRow

SPLITS = ("local", "global")


def seconds_to(target: int, split: str) -> str:
    """Return the name of the metric: simulated seconds until the mean accuracy was so many percent."""
    return f"seconds_to_{target}_{split}"


def times_to_accuracy(rows: Iterable[MetricRow], targets: Sequence[int]) -> dict[str, float | None]:
    """Return when the federation's mean accuracy, after fusion, first reached each target.

    That is the end of the first round whose evaluation found it.

    Args:
        rows: Of a run with a clock.
        targets: In percent.

    Returns:
        Simulated seconds by metric name; None: it was never reached.
    """
    ended: dict[int, float] = {}
    means: dict[str, list[tuple[int, float]]] = {split: [] for split in SPLITS}
    for row in rows:
        if row["client"] is not None or row["value"] is None:
            continue
        if row["metric"] == "virtual_seconds":
            ended[row["round"]] = row["value"]
        elif row["metric"] == "accuracy" and row["task"] is None and row["split"] in means:
            means[row["split"]].append((row["round"], row["value"]))
    found: dict[str, float | None] = {}
    for split in SPLITS:
        for target in targets:
            reached = [round for round, value in means[split] if 100 * value >= target - 1e-9]
            found[seconds_to(target, split)] = ended.get(min(reached)) if reached else None
    return found


def time_figures(
    rows: Sequence[MetricRow], seconds: float, targets: Sequence[int], *, stream: bool
) -> dict[str, Any]:
    """Return what a summary says of a run with a clock.

    Args:
        rows: Of the run.
        seconds: Simulated time that it took.
        targets: Accuracies in percent.
        stream: Whether it learns a stream of tasks, whose accuracy is of another task now and then.
    """
    return {"virtual_seconds": seconds} | ({} if stream else times_to_accuracy(rows, targets))
