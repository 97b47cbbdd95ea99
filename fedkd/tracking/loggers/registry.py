"""Registry of the loggers in `[tracking]`, with the packages that they need."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from fedkd.errors import UserError
from fedkd.plugins import install_hint
from fedkd.scenario import LoggerSection, Scenario
from fedkd.tracking.loggers.background import BackgroundLogger


@dataclass(frozen=True)
class LoggerKind:
    """A logger by its name in `[tracking]`."""

    name: str
    summary: str
    package: str  # imported package
    extra: str  # extra of fedkd that installs the package; empty for a dependency of fedkd
    logger: str  # class, "module:Class"

    @property
    def is_there(self) -> bool:
        """True if its package is installed."""
        try:
            return find_spec(self.package) is not None
        except (ImportError, ValueError):
            return False

    def make(self, section: LoggerSection) -> Any:
        """Return a logger with the settings of its table."""
        module, _, name = self.logger.partition(":")
        return getattr(import_module(f"fedkd.tracking.loggers.{module}"), name)(section)


_KINDS = (
    LoggerKind("wandb", "Weights & Biases, offline in the run folder or online.", "wandb", "",
               "wandb_logger:WandbLogger"),
    LoggerKind("tensorboard", "TensorBoard's event files, in the run folder or one common to several runs.",
               "tensorboard", "tensorboard", "tensorboard_logger:TensorBoardLogger"),
    LoggerKind("mlflow", "MLflow: a server, a database, or a folder in the run folder.", "mlflow", "mlflow",
               "mlflow_logger:MlflowLogger"),
)  # fmt: skip
LOGGERS = {kind.name: kind for kind in _KINDS}


def wanted_loggers(scenario: Scenario) -> Iterator[tuple[LoggerKind, LoggerSection]]:
    """Yield the loggers of a scenario with their settings."""
    for name, kind in LOGGERS.items():
        section = getattr(scenario.tracking, name)
        if section is not None and getattr(section, "mode", None) != "disabled":
            yield kind, section


def check_loggers(scenario: Scenario) -> None:
    """Raise a `UserError` with the install command for a logger that is not installed.

    wandb is a dependency of fedkd: if it is broken, a run logs a warning and continues.
    """
    for kind, _ in wanted_loggers(scenario):
        if kind.extra and not kind.is_there:
            told = f"{kind.package} is not installed; {install_hint(kind.extra)}"
            raise UserError(told, key=f"tracking.{kind.name}")


def make_loggers(scenario: Scenario, tell: Callable[[str], None]) -> list[BackgroundLogger]:
    """Return the loggers of a scenario; they pass messages for the user to `tell`."""
    return [
        BackgroundLogger(kind.name, kind.make(section), section.pictures_every, tell)
        for kind, section in wanted_loggers(scenario)
    ]
