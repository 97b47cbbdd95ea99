"""A participant: its model, training, evaluation, uploads and faults."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [],
    {
        "client": ["Client"],
        "costs.arithmetic": ["Workload", "count_trial_operations", "estimate_workload"],
        "costs.model_memory": [
            "STATES_PER_BATCH",
            "build_checked_models",
            "estimate_client_bytes",
            "estimate_fusion_bytes",
            "max_resident_clients",
        ],
        "evaluation.common_sample": ["with_test_sample"],
        "evaluation.fusion_effect": ["SPLITS", "Split"],
        "evaluation.task_tests": ["TaskMetric", "is_task_metric"],
        "evaluation.trials": ["LOGITS_KEY", "TRIAL_UPLOAD_KINDS", "run_trials", "trial_knowledge"],
        "factory": [
            "ClientFactory",
            "initial_network",
            "initial_weights",
            "model_factories",
            "model_outputs",
        ],
        "local.estimator_trainer": ["EstimatorTrainer"],
        "local.executor_cache": ["executor_cache_path", "read_step_measurements"],
        "local.select_executor": ["ExecutorChoice", "select_executor"],
        "local.task_stream": ["TaskStream"],
        "local_samples": ["count_held_out", "network_holdout_share", "selection_holdout_share"],
        "upload.stages": [
            "CLASS_COUNT_SUFFIX",
            "PREDICTIONS_SENT",
            "TOP_CLASS_SUFFIX",
            "UploadStage",
            "decode_upload",
            "server_filters",
            "upload_stages",
        ],
    },
)
