"""Logging to TensorBoard."""

from typing import Any

from fedkd.scenario import TensorBoard, dump_toml
from fedkd.storage import expand_path
from fedkd.tracking.loggers.logger import Ending, Figures, LoggedRun, heat_map

FOLDER = "tensorboard"


class TensorBoardLogger:
    """Writes TensorBoard's event files; the step is the round, or the task for `by_task/`.

    A resumed run adds a file to the same folder. Repeated rounds replace the earlier ones.
    """

    def __init__(self, wanted: TensorBoard) -> None:
        self._wanted = wanted
        self._writer: Any = None

    def open(self, run: LoggedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = run.folder / FOLDER
        if self._wanted.folder is not None:
            folder = expand_path(self._wanted.folder, key="tracking.tensorboard.folder") / run.folder.name
        purged = run.resumed_from + 1 if run.resumed_from else None
        self._writer = SummaryWriter(str(folder), purge_step=purged)
        if not run.resumed_from:
            toml = "\n".join(f"    {line}" for line in dump_toml(run.scenario).splitlines())
            self._writer.add_text("scenario", toml, 0)

    def log(self, figures: Figures) -> None:
        writer, round = self._writer, figures.round
        for name, value in figures.values.items():
            writer.add_scalar(name, value, round)
        if figures.task is not None:
            writer.add_scalar("task", figures.task, round)
            for name, value in figures.of_task.items():
                writer.add_scalar(name, value, figures.task)
        for name, values in figures.heat_maps.items():
            writer.add_image(name, heat_map(values), round, dataformats="HWC")
        for name, values in figures.histograms.items():
            writer.add_histogram(name, values, round)
        writer.flush()

    def close(self, ending: Ending) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()
