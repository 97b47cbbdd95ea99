"""Logging to Weights & Biases."""

import io
import secrets
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, Literal

from fedkd.scenario import Wandb
from fedkd.tracking.loggers.background import described_in_a_line
from fedkd.tracking.loggers.logger import Ending, Figures, LoggedRun, files_of, heat_map

Mode = Literal["offline", "online"]

IDENTITY = "wandb-id"
INIT_SECONDS = 30
FINISH_SECONDS = 60
BINS = 32


class WandbLogger:
    """Logs every round to a wandb run, with the round as its step.

    A resumed run continues the wandb run in `DIR/wandb` named in `DIR/wandb-id`. An online run that cannot
    start (no key, no network) is logged offline; upload it later with `wandb sync`.
    """

    def __init__(self, wanted: Wandb) -> None:
        self._wanted = wanted
        self._run: Any = None
        self._folder = Path()

    def open(self, run: LoggedRun) -> None:
        self._folder = run.folder
        self._run = self._start(run)
        self._run.define_metric("round")
        self._run.define_metric("task", step_metric="round")
        self._run.define_metric("*", step_metric="round")
        self._run.define_metric("by_task/*", step_metric="task")

    def log(self, figures: Figures) -> None:
        import wandb

        told: dict[str, Any] = {**figures.values, **figures.of_task, "round": figures.round}
        if figures.task is not None:
            told["task"] = figures.task
        for name, values in figures.heat_maps.items():
            told[name] = wandb.Image(heat_map(values))
        for name, values in figures.histograms.items():
            told[name] = wandb.Histogram(values.tolist(), num_bins=BINS)
        self._run.log(told, step=figures.round)

    def close(self, ending: Ending) -> None:
        import wandb

        run, self._run = self._run, None
        if run is None:
            return
        if ending.status == "done":
            run.summary.update(dict(ending.summary))
            for wanted in self._wanted.artifacts:
                artifact = wandb.Artifact(f"{wanted}-{run.id}", type=wanted)
                for path in files_of(self._folder, wanted):
                    artifact.add_file(str(path), name=str(path.relative_to(self._folder)))
                run.log_artifact(artifact)
        run.finish(exit_code=int(ending.status != "done"))

    def _start(self, run: LoggedRun) -> Any:
        identity = run.remembered(IDENTITY) or _new_identity(run)
        if self._wanted.mode == "online":
            if not _has_key():
                run.tell("wandb: no API key is configured; logging offline, upload later with `wandb sync`")
            else:
                try:
                    return self._open(run, identity, "online")
                except Exception as error:
                    why = described_in_a_line(error)
                    run.tell(f"wandb: logging offline, upload later with `wandb sync`: {why}")
                    # wandb keeps the identity of a run that failed to start.
                    identity = _new_identity(run)
        return self._open(run, identity, "offline")

    def _open(self, run: LoggedRun, identity: str, mode: Mode) -> Any:
        import wandb

        wanted = self._wanted
        settings = wandb.Settings(
            mode=mode, silent=True, quiet=True, console="off", disable_git=True, save_code=False,
            init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS,
        )  # fmt: skip
        return wandb.init(
            project=wanted.project, entity=wanted.entity, group=wanted.group, tags=wanted.tags,
            name=wanted.name or run.name, id=identity, resume="allow", dir=run.folder,
            reinit="create_new",  # keep a run that the caller has open
            config=run.scenario.model_dump(mode="json"), settings=settings,
        )  # fmt: skip


def _has_key() -> bool:
    import wandb

    # wandb prints the source of the key to standard error.
    with redirect_stderr(io.StringIO()):
        return wandb.login(prompt=False, verify=False)


def _new_identity(run: LoggedRun) -> str:
    # Not from the scenario's seed: two runs of one scenario need different identities.
    identity = secrets.token_hex(4)
    run.remember(IDENTITY, identity)
    return identity
