"""A participant: its model, what leaves it, what can be wrong with it. No messages, no engine."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [],
    {
        "client": ["Client"],
        "costs.arithmetic": ["Workload", "trial_work", "workload"],
        "costs.model_memory": ["STATES_AT_ONCE", "bytes_of_client", "checked_models", "clients_that_fit"],
        "evaluation.fusion_effect": ["SPLITS", "Split"],
        "evaluation.task_tests": ["TaskMetric", "is_task_metric"],
        "evaluation.trials": ["KINDS", "LOGITS", "shown", "try_out"],
        "factory": [
            "ClientFactory",
            "initial_network",
            "initial_weights",
            "model_factories",
            "model_outputs",
        ],
        "local.estimator_trainer": ["EstimatorTrainer"],
        "local.executor_cache": ["cache_file", "measured_steps"],
        "local.select_executor": ["Choice", "choose"],
        "local.task_stream": ["TaskStream"],
        "local_samples": ["number_kept_apart", "share_held_out", "share_kept_apart"],
        "upload.stages": ["CLASSES", "SENT", "WIDTH", "Stage", "at_fusion", "decode", "upload_stages"],
    },
)
