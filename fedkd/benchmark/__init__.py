"""Benches: many scenarios from one file, run side by side, compared with error bars."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [],
    {
        "cells": ["Cell", "cell_tables", "make_cell", "make_level", "name_cell_in_error"],
        "finished": ["find_damage", "read_summary"],
        "forecast": ["Basis", "forecast_words"],
        "merge": ["flatten", "keys_overlap", "value_at"],
        "progress": ["make_bench_progress"],
        "runner": ["BenchResult", "bench", "describe_plan", "partial_study", "plan_bench"],
        "scheduler": ["Scheduler", "open_scheduler"],
        "schema": [
            "COMPARED_METRICS",
            "Bench",
            "BenchFile",
            "ExperimentFile",
            "Seeds",
            "add_scenario_schema",
            "apply_overrides",
            "base_scenario",
            "bench_json_schema",
            "check_base_and_seeds",
            "dump_file",
            "file_errors",
            "load_bench",
        ],
        "worker": ["CellOutcome", "run_cell"],
    },
)
