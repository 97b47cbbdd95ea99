"""A scenario resolved once: names looked up, hyper-parameters bound, requirements checked, schedule drawn."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [],
    {
        "auxiliaries": ["make_auxiliaries"],
        "checks.graph": ["separate"],
        "checks.no_plugins": ["WithoutPlugins", "foreign_modules", "plug_ins_of"],
        "checks.requirements": ["check_requirements"],
        "checks.unread_keys": ["OverrideLayers"],
        "client_roles": [
            "accuracies_of_each",
            "counted_clients",
            "evaluated_clients",
            "models_told_apart",
            "poisoned_clients",
            "round_half_up",
            "victim_of",
        ],
        "clock": ["VirtualClock"],
        "continuation": ["TOLD", "check_continuation"],
        "graph": ["USUAL_K", "Graph"],
        "hyperparameters": ["CONTINUAL", "FUSION", "canonical_strategy"],
        "load": [
            "load_plan",
            "load_scenario",
            "load_without_plugins",
            "parse_plan",
            "parse_scenario",
            "parse_without_plugins",
            "plan_with",
        ],
        "model_sharing": ["held_models"],
        "plan": ["Plan", "open_plan", "resolve"],
        "scenario_schema": ["json_schema"],
        "schedule": ["Schedule"],
        "schedule_builder": ["build_schedule"],
        "upload_memory": ["uploads_kept"],
    },
)
