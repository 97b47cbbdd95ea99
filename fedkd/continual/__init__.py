"""Continual learning: task learners, one file a method, and the continual metrics."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [],
    {
        "adapters.decomposition": ["Layout"],
        "context": ["LearnerContext"],
        "for_plugins": ["hyperparameters"],
        "layers": ["find_layers", "head_names"],
        "learner": ["Learner", "Step"],
        "learning": ["TaskLearning"],
        "masks.shared_mask": ["SharedMask", "fingerprint_weights"],
        "masks.supermask": ["SupermaskLearner"],
        "metrics.metrics": ["average_accuracy", "bwt", "forgetting_per_task"],
        "metrics.outcome": ["ProtocolOutcome", "StreamOutcome", "stream_outcome"],
        "mixins": ["OwnLoss", "Phases", "extra_outputs"],
        "registry": ["LEARNERS", "learner_hyperparameters", "load_learner_class", "make_learner"],
        "replay.buffer": ["Episode"],
        "state": ["LearnerState", "TableField"],
        "statistics": ["statistics_names"],
        "subspace.bases": [
            "basis_energies",
            "check_layers",
            "count_leading_energies",
            "heads_are_disjoint",
            "protected_layers",
            "residual_directions",
        ],
        "subspace.canonical_basis": ["canonical_rotation"],
        "subspace.sketch": ["layer_sketches"],
        "task_history": ["TaskHistory"],
        "task_model": ["TaskModel"],
        "traits": [
            "changes_training",
            "needs_boundaries",
            "predicts_by_weights",
            "reopening_obstacle",
            "trains_on_old_tasks",
        ],
    },
)
