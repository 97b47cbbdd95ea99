"""Names of a client's metrics on the tasks of a stream, in replies and in `metrics.jsonl`."""

from __future__ import annotations

from typing import NamedTuple


class TaskMetric(NamedTuple):
    """One figure about one task: a row of `metrics.jsonl`."""

    metric: str
    split: str
    task: int

    @property
    def key(self) -> str:
        """Its name in a reply."""
        return f"{self.metric}/{self.split}/{self.task}"

    @staticmethod
    def from_key(key: str) -> TaskMetric:
        """Return the figure that a key of a reply names."""
        metric, split, task = key.rsplit("/", 2)
        return TaskMetric(metric, split, int(task))


def is_task_metric(key: str) -> bool:
    """Return whether a key of a reply names a figure about a task."""
    return key.count("/") >= 2
