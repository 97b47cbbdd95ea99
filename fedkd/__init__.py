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

import lazy_loader

__version__ = "0.2.0"
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    ["register"],
    {
        "auditing": ["AuditResult", "audit"],
        "benchmark": ["BenchResult", "bench"],
        "continual": ["Learner"],
        "errors": ["EngineLost", "FedkdError", "Interrupted", "RunFailed", "TrainingDiverged", "UserError"],
        "fusion": ["FusionStrategy", "Guidance", "Knowledge"],
        "plan": ["load_scenario"],
        "scenario": ["Scenario"],
        "simulation": ["Comparison", "RunEntry", "RunList", "RunResult", "compare", "resume", "run", "runs"],
        "tracking": ["RoundReport", "RunObserver", "RunReport"],
        "trained": ["Export", "TrainedClient", "export", "load_client"],
        "tuning": ["TuneResult", "tune"],
    },
)
