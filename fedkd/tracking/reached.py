"""When a federation reached an accuracy, on the simulated clock."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fedkd.tracking.recorder import MetricRow

SPLITS = ("local", "global")


def times_to_accuracy(rows: Iterable[MetricRow], targets: Sequence[int]) -> dict[str, float | None]:
    """Return the simulated seconds until the federation's mean accuracy, after fusion, reached each target.

    These are the ends of rounds, by metric name; None: the target, in percent, was never reached.
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
            found[f"seconds_to_{target}_{split}"] = ended.get(min(reached)) if reached else None
    return found
