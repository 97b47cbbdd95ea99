"""The plan of a run: a resolved scenario with strategy, learner, checks and schedule."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [],
    {
        "auxiliaries": ["make_auxiliaries"],
        "checks.graph": ["unconnected_clients"],
        "checks.no_plugins": ["WithoutPlugins", "find_plug_ins", "foreign_modules"],
        "checks.requirements": ["check_requirements"],
        "checks.unread_keys": ["OverrideLayers"],
        "client_roles": [
            "counted_clients",
            "evaluated_clients",
            "listed_metrics",
            "poisoned_clients",
            "poisoning_victim",
            "round_half_up",
            "separate_model_accuracies",
            "separately_measured_models",
        ],
        "clock": ["VirtualClock"],
        "continuation": ["MAX_LISTED_CHANGES", "check_continuation"],
        "graph": ["DEFAULT_NEIGHBOURS", "Graph"],
        "hyperparameters": ["CONTINUAL_TABLE", "FUSION_TABLE", "canonical_strategy"],
        "load": [
            "load_plan",
            "load_scenario",
            "load_without_plugins",
            "parse_plan",
            "parse_scenario",
            "parse_without_plugins",
            "plan_with_changes",
        ],
        "model_sharing": ["models_after_fusion"],
        "plan": ["Plan", "open_plan", "resolve_plan"],
        "scenario_schema": ["json_schema"],
        "schedule": ["Schedule"],
        "schedule_builder": ["build_schedule"],
        "upload_memory": ["max_stored_uploads"],
    },
)
