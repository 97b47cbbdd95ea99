from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from fedkd.report.study import Study, StudyAxis, StudyRun

ACCURACY = {
    ("0.1", "local"): (0.50, 0.60, 0.70),
    ("0.1", "knfu"): (0.52, 0.63, 0.71),
    ("0.1", "fedmd"): (0.30, 0.40, 0.20),
    ("10", "local"): (0.80, 0.80, 0.80),
    ("10", "knfu"): (0.90, 0.91, 0.92),
    ("10", "fedmd"): (0.905, 0.90, 0.92),
}
"""(α, strategy) to the final local accuracy with seeds 1, 2, 3."""


@pytest.fixture
def study() -> Study:
    """Three strategies on two label skews with three seeds; `local` sends nothing and has no gain."""
    runs = []
    for (alpha, strategy), values in ACCURACY.items():
        for seed, value in enumerate(values, start=1):
            final = {"accuracy_local": value, "accuracy_global": value - 0.1}
            if strategy != "local":
                final["fusion_gain_local"] = 0.01 * seed
            rounds = (1, 2, 3)
            curves = {name: tuple((r, end * r / 3) for r in rounds) for name, end in final.items()}
            sent = 0 if strategy == "local" else 1000
            traffic = tuple((r, sent * r) for r in rounds)
            runs.append(StudyRun((alpha, strategy), seed, final, curves, traffic))
    return Study(
        name="made-up",
        axes=(
            StudyAxis("data.partition.alpha", ("0.1", "10")),
            StudyAxis("fusion.strategy", ("local", "knfu", "fedmd")),
        ),
        compared=("fusion.strategy",),
        baseline=("local",),
        metrics=("accuracy_local", "fusion_gain_local"),
        runs=tuple(runs),
    )


STREAM = {
    ("task", "naive"): (0.0, (0.99, 0.90, 0.80)),
    ("task", "ewc"): (4000.0, (0.99, 0.95, 0.93)),
    ("task", "packnet"): (100.0, (0.98, 0.97, 0.96)),
    ("class", "naive"): (0.0, (0.99, 0.50, 0.33)),
    ("class", "ewc"): (4000.0, (0.99, 0.50, 0.34)),
    ("class", "packnet"): (100.0, (0.98, 0.60, 0.45)),
}
"""(head, learner) to the bytes it stores a task and the average accuracy after each of three tasks."""


@pytest.fixture
def stream_study() -> Study:
    """Three learners under two heads with two seeds, a hundredth apart."""
    runs = []
    for levels, (stored, accuracies) in STREAM.items():
        for seed in (1, 2):
            curve = tuple((task, value + seed / 100) for task, value in enumerate(accuracies, start=1))
            name = f"average_accuracy_{levels[0]}_incremental"
            last = curve[-1][1]
            final = {name: last, "average_accuracy": last, "stored_bytes_per_task": stored}
            runs.append(StudyRun(levels, seed, final, tasks={name: curve}))
    return Study(
        name="stream",
        axes=(
            StudyAxis("continual.head", ("task", "class")),
            StudyAxis("continual.learner", ("naive", "ewc", "packnet")),
        ),
        compared=("continual.learner",),
        baseline=("naive",),
        metrics=("average_accuracy_task_incremental", "average_accuracy_class_incremental"),
        runs=tuple(runs),
    )


@pytest.fixture
def renamed(study) -> Callable[[str], Study]:
    """Return a function to `study` with another name for `knfu`."""

    def rename(odd: str) -> Study:
        def new(names):
            return tuple(odd if name == "knfu" else name for name in names)

        axes = (study.axes[0], replace(study.axes[1], levels=new(study.axes[1].levels)))
        return replace(
            study, axes=axes, runs=tuple(replace(run, levels=new(run.levels)) for run in study.runs)
        )

    return rename
