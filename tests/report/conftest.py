from __future__ import annotations

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
