"""Continual learning: task learners, one file a method, and the continual metrics."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [],
    {
        "adapters.decomposition": ["Layout"],
        "context": ["LearnerContext"],
        "for_plugins": ["hyperparameters"],
        "layers": ["head_names", "layers_of"],
        "learner": ["Learner", "Step"],
        "learning": ["TaskLearning"],
        "masks.shared_mask": ["SharedMask", "fingerprint"],
        "masks.supermask": ["SupermaskLearner"],
        "metrics.metrics": ["average_accuracy", "bwt", "forgetting_per_task"],
        "metrics.outcome": ["ProtocolOutcome", "StreamOutcome", "stream_outcome"],
        "mixins": ["OwnLoss", "Phases", "extra_outputs"],
        "registry": ["LEARNERS", "learner_hyperparameters", "load_learner_class", "make_learner"],
        "replay.buffer": ["Episode"],
        "state": ["LearnerState", "Table"],
        "statistics": ["statistics_names"],
        "subspace.bases": [
            "check_layers",
            "energies_along",
            "have_own_heads",
            "number_needed",
            "protected_layers",
            "residual_directions",
        ],
        "subspace.canonical_basis": ["canonical_rotation"],
        "subspace.sketch": ["layer_sketches"],
        "task_history": ["TaskHistory"],
        "task_model": ["TaskModel"],
        "traits": [
            "needs_boundaries",
            "predicts_by_weights",
            "shapes_training",
            "trains_on_old_tasks",
            "why_closed",
        ],
    },
)
