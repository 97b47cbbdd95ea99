"""Loggers of a run, each a table of the scenario file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedkd.scenario.sections import Section

Artifact = Literal["record", "checkpoint"]
"""Files of a run that a logger keeps too: its record, or its last checkpoint."""


class LoggerSection(Section):
    """Settings of every logger."""

    pictures_every: Annotated[int, Field(ge=0)] = 10
    """Rounds between pictures: a heat map of knowledge exchanged by clients, histograms of accuracies and
    neighbours. The first and the last round always have one; 0: none at all."""


class Wandb(LoggerSection):
    """Logging to Weights & Biases."""

    mode: Literal["offline", "online", "disabled"] = "offline"
    """`offline` needs no key: the run lies in the run folder, to be synchronised later."""
    project: str = "fedkd"
    """Project the run belongs to."""
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
    """Parent folder of the runs' folders, in the working folder; absent: `tensorboard` in the run folder."""


class Mlflow(LoggerSection):
    """Logging to MLflow, with the extra `mlflow`."""

    uri: str | None = None
    """A server's address, a folder, or `sqlite:///FILE`. Absent: `$MLFLOW_TRACKING_URI`, else `mlruns` in
    the run folder."""
    experiment: str | None = None
    """Experiment the run belongs to; absent: the name of the bench or the search, else `fedkd`."""
    name: str | None = None
    """Name of the run in MLflow; absent: the scenario's name and seed."""
    tags: dict[str, str] = Field(default_factory=dict)
    """Tags of the run."""
    artifacts: list[Artifact] = Field(default_factory=list)
    """Artifacts of a finished run: its `record` (scenario, metrics, timings, …), its last `checkpoint`."""


class Tracking(Section):
    """Loggers besides the run folder; each of several gets all metrics."""

    wandb: Wandb | None = None
    """Absent: no wandb."""
    tensorboard: TensorBoard | None = None
    """Absent: no TensorBoard; `{}` for its defaults."""
    mlflow: Mlflow | None = None
    """Absent: no MLflow; `{}` for its defaults."""

    def grouped(self, name: str) -> Tracking:
        """Return this with a group for a bench or search, unless set."""
        changes = {
            logger: section.model_copy(update={key: name})
            for logger, key in (("wandb", "group"), ("mlflow", "experiment"))
            if (section := getattr(self, logger)) is not None and getattr(section, key) is None
        }
        return self.model_copy(update=changes)
