"""Searching for hyper-parameters on held-out samples, with Optuna."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [],
    {
        "results": ["MAX_TABLE_TRIALS"],
        "runner": ["TuneResult", "describe_tune", "plan_tune", "tune"],
        "schema": ["load_search", "search_json_schema"],
    },
)
