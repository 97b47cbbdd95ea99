"""Benches: many scenarios from one file, run side by side, compared with error bars."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [],
    {
        "cells": ["Cell", "cell_tables", "in_cell", "level_of", "make_cell"],
        "finished": ["damage", "read_summary"],
        "merge": ["flatten", "overlapping", "value_at"],
        "progress": ["make_bench_progress"],
        "runner": ["BenchResult", "bench", "describe_plan", "plan_bench", "study_so_far"],
        "scheduler": ["Scheduler", "scheduling"],
        "schema": [
            "METRICS",
            "NAME",
            "Bench",
            "BenchFile",
            "ExperimentFile",
            "Seeds",
            "apply_overrides",
            "base_scenario",
            "bench_json_schema",
            "check_base_and_seeds",
            "dump_file",
            "explaining",
            "load_bench",
            "with_scenario",
        ],
        "worker": ["Outcome", "run_cell"],
    },
)
