"""A simulator of federated and continual learning among clients with different models, on Flower and Ray.

Rooms, lowest floor first; a room imports only from rooms below it:

    errors, randomness       error classes with exit codes; generators from the seed
    storage, plugins         files of a run; users' own code and its hyper-parameters
    scenario                 what to simulate: the keys of a scenario file
    data, models             data sets, partitions, streams; the zoo of client models
    training                 jobs, the loop, losses, optimisers
    continual                learners, one file a method, by kind of method
    fusion                   fusion strategies, one file a method, by what they exchange
    register                 names for plug-ins
    plan                     a scenario resolved once: schedule, graph, checks
    tracking, report         what a run records; tables, figures and pages of it
    clients, server          a participant; knowledge in, guidance out
    federation               rounds, Flower apps, messages, checkpoints
    engine                   where clients run: in this process or on Ray actors
    simulation               runs from start to results
    scaffold                 templates of plug-ins
    trained, deployment      a run's clients afterwards; federations of real nodes
    benchmark, tuning        many scenarios compared; hyper-parameters searched
    cli                      the command `fedkd`
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedkd import register

if TYPE_CHECKING:
    from fedkd.benchmark.bench import BenchResult, bench
    from fedkd.continual.learner import Learner
    from fedkd.errors import EngineLost, FedkdError, Interrupted, RunFailed, TrainingDiverged, UserError
    from fedkd.fusion.strategy import FusionStrategy, Guidance, Knowledge
    from fedkd.plan.load import load_scenario
    from fedkd.scenario.schema import Scenario
    from fedkd.simulation.comparison import Comparison, compare
    from fedkd.simulation.listing import RunEntry, RunList, runs
    from fedkd.simulation.results import RunResult
    from fedkd.simulation.runner import resume, run
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
    "FusionStrategy",
    "Guidance",
    "Interrupted",
    "Knowledge",
    "Learner",
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
    "continual.learner": ("Learner",),
    "errors": ("EngineLost", "FedkdError", "Interrupted", "RunFailed", "TrainingDiverged", "UserError"),
    "fusion.strategy": ("FusionStrategy", "Guidance", "Knowledge"),
    "plan.load": ("load_scenario",),
    "simulation.comparison": ("Comparison", "compare"),
    "simulation.listing": ("RunEntry", "RunList", "runs"),
    "simulation.results": ("RunResult",),
    "simulation.runner": ("resume", "run"),
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
