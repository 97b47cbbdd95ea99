"""Loggers of a run, each a table of the scenario file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedkd.scenario.sections import Section

Artifact = Literal["record", "checkpoint"]
"""Files of a run that a logger uploads: its record, or its last checkpoint."""


class LoggerSection(Section):
    """Settings of all loggers."""

    pictures_every: Annotated[int, Field(ge=0)] = 10
    """Rounds between pictures: a heat map of the fusion weights between clients, and histograms of accuracies
    and neighbours. The first and the last round always have them; 0: no pictures."""


class Wandb(LoggerSection):
    """Logging to Weights & Biases."""

    mode: Literal["offline", "online", "disabled"] = "offline"
    """`offline` writes to the run folder without a key; upload later with `wandb sync`."""
    project: str = "fedkd"
    """Project of the run."""
    entity: str | None = None
    """User or team that owns the project; absent: the account's default."""
    group: str | None = None
    """Group of the run, e.g. all seeds of a setting; absent: the name of its bench or search."""
    name: str | None = None
    """Name of the run in wandb; absent: the scenario's name and seed."""
    tags: list[str] = Field(default_factory=list)
    """Tags of the run."""
    artifacts: list[Artifact] = Field(default_factory=list)
    """Artifacts of a finished run: its `record` (scenario, metrics, timings, …), its last `checkpoint`."""


class TensorBoard(LoggerSection):
    """Logging to TensorBoard's event files, with the extra `tensorboard`."""

    folder: str | None = None
    """Common folder, relative to the working folder, with one folder per run; absent: `tensorboard` in the
    run folder."""


class Mlflow(LoggerSection):
    """Logging to MLflow, with the extra `mlflow`."""

    uri: str | None = None
    """Address of a server, a folder, or `sqlite:///FILE`. Absent: `$MLFLOW_TRACKING_URI`, else `mlruns` in
    the run folder."""
    experiment: str | None = None
    """Experiment of the run; absent: the name of the bench or search, else `fedkd`."""
    name: str | None = None
    """Name of the run in MLflow; absent: the scenario's name and seed."""
    tags: dict[str, str] = Field(default_factory=dict)
    """Tags of the run."""
    artifacts: list[Artifact] = Field(default_factory=list)
    """Artifacts of a finished run: its `record` (scenario, metrics, timings, …), its last `checkpoint`."""


class Tracking(Section):
    """Loggers in addition to the run folder; each gets all metrics."""

    wandb: Wandb | None = None
    """Weights & Biases, `{}` for its defaults; absent: off."""
    tensorboard: TensorBoard | None = None
    """TensorBoard, `{}` for its defaults; absent: off."""
    mlflow: Mlflow | None = None
    """MLflow, `{}` for its defaults; absent: off."""

    def grouped(self, name: str) -> Tracking:
        """Return a copy with the group of a bench or search, unless one is set."""
        changes = {
            logger: section.model_copy(update={key: name})
            for logger, key in (("wandb", "group"), ("mlflow", "experiment"))
            if (section := getattr(self, logger)) is not None and getattr(section, key) is None
        }
        return self.model_copy(update=changes)
