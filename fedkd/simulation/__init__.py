"""Simulations from start to results: `runner` starts them, `results` reads them, `check` looks ahead."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [],
    {
        "comparison": ["Comparison", "compare"],
        "listing": ["RunEntry", "RunList", "runs", "summary_of"],
        "results": ["RunResult"],
        "runner": ["ERROR_FILE", "resume", "run"],
        "scenario_check": ["check", "check_with", "check_without_plugins"],
    },
)
