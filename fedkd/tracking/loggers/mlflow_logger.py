"""The logger for MLflow."""

import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.scenario import Mlflow, changed_keys
from fedkd.tracking.loggers.logger import Ending, Figures, LoggedRun, files_of, heat_map

IDENTITY = "mlflow-id"
FOLDER = "mlruns"
URI = "MLFLOW_TRACKING_URI"
EXPERIMENT = "fedkd"
MOST_PARAMS = 100  # of one request
LONGEST_PARAM = 500
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ALLOW_FILE_STORE": "true",
}
STATUS = {"done": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class MlflowLogger:
    """Logs every round to an MLflow run; the step is the round, or the task for `by_task/`.

    Pictures are artifacts below `pictures/`. Histograms are logged as minimum, median and maximum. A resumed
    run continues the MLflow run named in `DIR/mlflow-id`.
    """

    def __init__(self, wanted: Mlflow) -> None:
        self._wanted = wanted
        self._client: Any = None
        self._id = ""
        self._folder = Path()

    def open(self, run: LoggedRun) -> None:
        for name, value in ENVIRONMENT.items():  # before the import
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        self._folder = run.folder
        uri = self._wanted.uri or os.environ.get(URI) or (run.folder / FOLDER).as_uri()
        self._client = MlflowClient(tracking_uri=uri)
        known = run.remembered(IDENTITY)
        if known is not None and self._is_there(known):
            self._id = known
            self._client.update_run(known, status="RUNNING")
            return
        tags = {"fedkd.seed": str(run.scenario.seed), **self._wanted.tags}
        name = self._wanted.name or run.name
        created = self._client.create_run(self._experiment(), tags=tags, run_name=name)
        self._id = created.info.run_id
        run.remember(IDENTITY, self._id)
        self._log_params(run)

    def log(self, figures: Figures) -> None:
        spread = {
            f"{name}/{statistic}": float(of(values))
            for name, values in figures.histograms.items()
            for statistic, of in (("min", np.min), ("median", np.median), ("max", np.max))
        }
        values = {**figures.values, **spread}
        if figures.task is not None:
            values["task"] = figures.task
            self._log_values(figures.of_task, figures.task)
        self._log_values(values, figures.round)
        for name, table in figures.heat_maps.items():
            self._log_picture(name, table, figures.round)

    def close(self, ending: Ending) -> None:
        if self._client is None or not self._id:
            return
        client, self._client = self._client, None
        if ending.status == "done":
            for wanted in self._wanted.artifacts:
                for path in files_of(self._folder, wanted):
                    place = Path(wanted) / path.relative_to(self._folder).parent
                    client.log_artifact(self._id, str(path), place.as_posix())
        client.set_terminated(self._id, STATUS[ending.status])

    def _is_there(self, identity: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            self._client.get_run(identity)
        except MlflowException:  # the store was removed or replaced
            return False
        return True

    def _experiment(self) -> str:
        """Return the experiment's id; parallel runs may create it at the same time."""
        from mlflow.exceptions import MlflowException

        name = self._wanted.experiment or EXPERIMENT
        if (found := self._client.get_experiment_by_name(name)) is not None:
            return found.experiment_id
        try:
            return self._client.create_experiment(name)
        except MlflowException:
            if (found := self._client.get_experiment_by_name(name)) is None:
                raise
            return found.experiment_id

    def _log_params(self, run: LoggedRun) -> None:
        from mlflow.entities import Param

        keys = changed_keys({}, run.scenario.model_dump(mode="json", exclude={"tracking"}), places=True)
        told = [Param(key, str(now)[:LONGEST_PARAM]) for key, (_, now) in keys.items() if now is not None]
        for start in range(0, len(told), MOST_PARAMS):
            self._client.log_batch(self._id, params=told[start : start + MOST_PARAMS])

    def _log_values(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        if values:
            told = [Metric(name, float(value), now, step) for name, value in values.items()]
            self._client.log_batch(self._id, metrics=told)

    def _log_picture(self, name: str, table: np.ndarray, round: int) -> None:
        from PIL import Image

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"round-{round:05d}.png"
            Image.fromarray(heat_map(table)).save(path)
            self._client.log_artifact(self._id, str(path), f"pictures/{name}")
