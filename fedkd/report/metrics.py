"""Titles, units, scales and rankings of metrics."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

TEST_SAMPLES = "test_samples_global"
"""Number of common test samples behind the figures of a round before the last."""


@dataclass(frozen=True)
class Metric:
    """The presentation of a metric in tables and figures."""

    name: str  # as in the bench file, e.g. accuracy_local
    title: str
    unit: str = ""
    scale: float = 1.0  # shown value = recorded value × scale
    decimals: int = 3
    better: Literal["higher", "lower"] | None = None

    @property
    def label(self) -> str:
        """Title and unit, for an axis."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    @property
    def difference_unit(self) -> str:
        """Unit of a difference: points for percentages."""
        return "points" if self.unit == "%" else self.unit


def find_metric(name: str) -> Metric:
    """Return the presentation of the metric `name`."""
    if name in _WHOLE_RUN:
        return _WHOLE_RUN[name]
    for ending, over in OVER_CLIENTS.items():
        if name.endswith(f"_{ending}"):
            return _over_clients(name, find_metric(name.removesuffix(f"_{ending}")), ending, over)
    for suffix, added in _TESTS.items():
        if (stem := name.removesuffix(suffix)) in _CONTINUAL:
            shown = _CONTINUAL[stem]
            return replace(shown, name=name, title=f"{shown.title}{added}")
    stem, _, split = name.rpartition("_")
    measure = stem.removesuffix("_before_fusion")
    if measure in _LISTED:
        shown, moment = _LISTED[measure], "after" if measure == stem else "before"
        return replace(shown, name=name, title=f"{split} {shown.title} {moment} fusion")
    words = stem.replace("_", " ")
    if stem in _OF_SPLIT:
        return replace(_OF_SPLIT[stem], name=name, title=_OF_SPLIT[stem].title.format(split=split))
    if (reached := _SECONDS_TO.fullmatch(name)) is not None:
        return Metric(name, f"simulated time to {reached[1]} %, {reached[2]}", "s", 1.0, 1, "lower")
    if stem.endswith("accuracy"):
        return Metric(name, f"{split} {words}", "%", 100.0, 1, "higher")
    if (model := stem.removeprefix("accuracy_")) != stem:
        moment = "before" if model.startswith("before_fusion_") else "after"
        title = f"{split} accuracy {moment} fusion, {model.removeprefix('before_fusion_')} model"
        return Metric(name, title, "%", 100.0, 1, "higher")
    if stem == "loss":
        return Metric(name, f"{'training' if split == 'train' else split} loss", better="lower")
    if stem.startswith("rank_"):
        return Metric(name, f"gains ranked by {words[5:]}, {split}", "Spearman", 1.0, 2, "higher")
    if stem.startswith("hit_"):
        return Metric(name, f"best sender found by {words[4:]}, {split}", "%", 100.0, 1, "higher")
    return Metric(name, f"{words}, {split}")


OVER_CLIENTS = {
    "worst_10": "worst 10 % of clients",
    "min": "lowest client",
    "max": "highest client",
    "std": "standard deviation over clients",
    "jain": "Jain index over clients",
    "gini": "Gini coefficient over clients",
}
"""Endings of final metrics for a statistic over clients other than the mean, and their titles."""


def _over_clients(name: str, shown: Metric, ending: str, over: str) -> Metric:
    if ending in ("jain", "gini"):
        return Metric(name, f"{shown.title}, {over}", better="higher" if ending == "jain" else "lower")
    shown = replace(shown, name=name, title=f"{shown.title}, {over}")
    return replace(shown, unit=shown.difference_unit, better="lower") if ending == "std" else shown


def _by_name(*shown: Metric) -> dict[str, Metric]:
    return {one.name: one for one in shown}


_OF_SPLIT = _by_name(
    Metric("accuracy_before_fusion", "{split} accuracy before fusion", "%", 100.0, 1, "higher"),
    Metric("accuracy", "{split} accuracy after fusion", "%", 100.0, 1, "higher"),
    Metric("fusion_gain", "fusion gain, {split}", "points", 100.0, 1, "higher"),
    Metric("transfer_gain", "gain from one sender, {split}", "points", 100.0, 1, "higher"),
    Metric("transfer_rate", "transfer rate", "%", 100.0, 1, "higher"),
    Metric("share_below_baseline", "clients below the baseline, {split}", "%", 100.0, 1, "lower"),
    Metric("hit_chance", "best sender found by chance, {split}", "%", 100.0, 1),
    Metric("effective_neighbours", "effective neighbours", decimals=1),
)
_LISTED = _by_name(
    Metric("macro_f1", "macro F1", "%", 100.0, 1, "higher"),
    Metric("balanced_accuracy", "balanced accuracy", "%", 100.0, 1, "higher"),
    Metric("auroc", "AUROC", better="higher"),
    Metric("ece", "ECE", "%", 100.0, 1, "lower"),
    Metric("nll", "NLL", "nats", better="lower"),
    Metric("brier", "Brier score", better="lower"),
    Metric("mae", "MAE", better="lower"),
    Metric("rmse", "RMSE", better="lower"),
    Metric("r2", "R²", better="higher"),
    Metric("coverage", "coverage of 90 % intervals", "%", 100.0, 1),
)
LISTED_METRICS = tuple(
    f"{name}{moment}_{split}"
    for name in _LISTED
    for moment in ("_before_fusion", "")
    for split in ("local", "global")
)
"""Recorded of runs whose scenario lists them."""
_SECONDS_TO = re.compile(r"seconds_to_(\d+)_(local|global)")  # see `fedkd.report.run_summary`

_WHOLE_RUN = _by_name(
    Metric("evaluation_bytes", "sent for evaluation", "MB", 1e-6, 2),
    Metric("bytes_up", "sent by clients", "MB", 1e-6, 2, "lower"),
    Metric("bytes_down", "received by clients", "MB", 1e-6, 2, "lower"),
    Metric("seconds", "time of a run", "s", 1.0, 1, "lower"),
    Metric("virtual_seconds", "simulated time of a run", "s", 1.0, 1, "lower"),
)

_CONTINUAL = _by_name(
    Metric("average_accuracy", "average accuracy", "%", 100.0, 1, "higher"),
    Metric("average_incremental_accuracy", "average incremental accuracy", "%", 100.0, 1, "higher"),
    Metric("bwt", "BWT", "points", 100.0, 1, "higher"),
    Metric("fwt", "FWT", "points", 100.0, 1, "higher"),
    Metric("gain_over_single", "gain over single", "points", 100.0, 1, "higher"),
    Metric("learning_area", "learning area", "%", 100.0, 1, "higher"),
    Metric("epochs_to_90", "epochs to 90 %", "epochs", 1.0, 1, "lower"),
    Metric("forgetting", "forgetting", "points", 100.0, 1, "lower"),
    Metric("forgetting_first_last", "forgetting, first − last", "points", 100.0, 1, "lower"),
    Metric("intransigence", "intransigence", "points", 100.0, 1, "lower"),
    Metric("nbt", "NBT", "points", 100.0, 1, "lower"),
    Metric("auc", "AUC", "%", 100.0, 1, "higher"),
    Metric("temporal_forgetting", "temporal forgetting", "points", 100.0, 1, "lower"),
    Metric("spatial_forgetting", "spatial forgetting", "points", 100.0, 1, "lower"),
    Metric("rounds_to_90", "rounds to 90 %", "rounds", 1.0, 1, "lower"),
    Metric("rounds_to_90_early", "rounds to 90 %, first to learn", "rounds", 1.0, 1, "lower"),
    Metric("rounds_to_90_late", "rounds to 90 %, last to learn", "rounds", 1.0, 1, "lower"),
    Metric("task_inference_rate", "task inference rate", "%", 100.0, 1, "higher"),
    Metric("stored_bytes", "stored", "kB", 1e-3, 1, "lower"),
    Metric("stored_bytes_per_task", "stored per task", "kB", 1e-3, 1, "lower"),
    Metric("peak_bytes", "peak storage", "kB", 1e-3, 1, "lower"),
)
_TESTS = {
    "": "",
    "_local": ", local",
    "_task_incremental": ", task-incremental",
    "_domain_incremental": ", domain-incremental",
    "_class_incremental": ", class-incremental",
}
"""Endings of metric names for the tests of a stream, and their titles."""

CONTINUAL_METRICS = tuple(
    name + test
    for test in _TESTS
    for name in _CONTINUAL
    if not (test and _CONTINUAL[name].unit == "kB")
    and not (test == "_task_incremental" and name == "task_inference_rate")  # the task is given
)
"""Metrics of a run over a stream of tasks, in its summary if they are defined.

A bench adds `intransigence` and `gain_over_single`, which need a second run."""


def sample_note(sizes: Iterable[int]) -> str:
    """Word the test samples behind points before the last round; empty: all samples."""
    sizes = sorted(set(sizes))
    if not sizes:
        return ""
    number = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    return f", before the last round on {number} of its samples"
