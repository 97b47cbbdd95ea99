"""Run scenarios, check them beforehand, list and compare the runs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [],
    {
        "comparison": ["Comparison", "compare"],
        "listing": ["RunEntry", "RunList", "read_run_summary", "runs"],
        "results": ["RunResult"],
        "runner": ["ERROR_FILE", "resume", "run"],
        "scenario_check": ["check_models_and_exchange", "check_plan", "check_without_plugins"],
    },
)
