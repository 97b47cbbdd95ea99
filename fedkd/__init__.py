"""fedkd: federated knowledge distillation among unlike clients, simulated on Flower and Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedkd import register

if TYPE_CHECKING:
    from fedkd.benchmark.bench import BenchResult, bench
    from fedkd.errors import EngineLost, FedkdError, Interrupted, RunFailed, TrainingDiverged, UserError
    from fedkd.overview.compare import Comparison, compare
    from fedkd.overview.runs import RunEntry, RunList, runs
    from fedkd.plan.load import load_scenario
    from fedkd.results import RunResult
    from fedkd.runner import resume, run
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
    "BenchResult": "fedkd.benchmark.bench",
    "Comparison": "fedkd.overview.compare",
    "EngineLost": "fedkd.errors",
    "Export": "fedkd.trained.export",
    "FedkdError": "fedkd.errors",
    "Interrupted": "fedkd.errors",
    "RoundReport": "fedkd.tracking.events",
    "RunEntry": "fedkd.overview.runs",
    "RunFailed": "fedkd.errors",
    "RunList": "fedkd.overview.runs",
    "RunObserver": "fedkd.tracking.events",
    "RunReport": "fedkd.tracking.events",
    "RunResult": "fedkd.results",
    "Scenario": "fedkd.scenario.schema",
    "TrainedClient": "fedkd.trained.client",
    "TrainingDiverged": "fedkd.errors",
    "TuneResult": "fedkd.tuning.tune",
    "UserError": "fedkd.errors",
    "bench": "fedkd.benchmark.bench",
    "compare": "fedkd.overview.compare",
    "export": "fedkd.trained.export",
    "load_client": "fedkd.trained.client",
    "load_scenario": "fedkd.plan.load",
    "resume": "fedkd.runner",
    "run": "fedkd.runner",
    "runs": "fedkd.overview.runs",
    "tune": "fedkd.tuning.tune",
}


if not TYPE_CHECKING:  # else a type checker would take every name for granted

    def __getattr__(name: str) -> Any:
        """Import the public names on first use: the command line must not pay for what it does not need."""
        from importlib import import_module

        if name not in _LAZY:
            raise AttributeError(f"module 'fedkd' has no attribute '{name}'")
        return getattr(import_module(_LAZY[name]), name)

    def __dir__() -> list[str]:
        """Name what is public, imported already or on first use."""
        return sorted(__all__)
