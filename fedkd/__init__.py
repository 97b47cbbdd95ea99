"""fedkd: federated knowledge distillation among unlike clients, simulated on Flower and Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedkd import register

if TYPE_CHECKING:
    from fedkd.benchmark.bench import BenchResult, bench
    from fedkd.errors import EngineLost, FedkdError, Interrupted, RunFailed, TrainingDiverged, UserError
    from fedkd.plan.load import load_scenario
    from fedkd.runs.comparison import Comparison, compare
    from fedkd.runs.listing import RunEntry, RunList, runs
    from fedkd.runs.results import RunResult
    from fedkd.runs.runner import resume, run
    from fedkd.scenario.schema import Scenario
    from fedkd.tracking.events import RoundReport, RunObserver, RunReport
    from fedkd.trained.client import TrainedClient, load_client
    from fedkd.trained.export import Export, export
    from fedkd.tuning.tune import TuneResult, tune

__version__ = "0.1.0"
__all__ = [
    "BenchResult",
    "Comparison",
    "EngineLost",
    "Export",
    "FedkdError",
    "Interrupted",
    "RoundReport",
    "RunEntry",
    "RunFailed",
    "RunList",
    "RunObserver",
    "RunReport",
    "RunResult",
    "Scenario",
    "TrainedClient",
    "TrainingDiverged",
    "TuneResult",
    "UserError",
    "__version__",
    "bench",
    "compare",
    "export",
    "load_client",
    "load_scenario",
    "register",
    "resume",
    "run",
    "runs",
    "tune",
]

_LAZY = {
    "benchmark.bench": ("BenchResult", "bench"),
    "errors": ("EngineLost", "FedkdError", "Interrupted", "RunFailed", "TrainingDiverged", "UserError"),
    "overview.compare": ("Comparison", "compare"),
    "overview.runs": ("RunEntry", "RunList", "runs"),
    "plan.load": ("load_scenario",),
    "results": ("RunResult",),
    "runner": ("resume", "run"),
    "scenario.schema": ("Scenario",),
    "tracking.events": ("RoundReport", "RunObserver", "RunReport"),
    "trained.client": ("TrainedClient", "load_client"),
    "trained.export": ("Export", "export"),
    "tuning.tune": ("TuneResult", "tune"),
}
_MODULES = {name: f"fedkd.{module}" for module, names in _LAZY.items() for name in names}


if not TYPE_CHECKING:  # else a type checker would take every name for granted

    def __getattr__(name: str) -> Any:
        """Import the public names on first use: the command line must not pay for what it does not need."""
        from importlib import import_module

        if name not in _MODULES:
            raise AttributeError(f"module 'fedkd' has no attribute '{name}'")
        return getattr(import_module(_MODULES[name]), name)

    def __dir__() -> list[str]:
        """Name what is public, imported already or on first use."""
        return sorted(__all__)
