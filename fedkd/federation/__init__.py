"""The Flower apps: ClientApp, ServerApp, the message layout, client state and checkpoints."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [],
    {
        "apps.client_app": ["answer_together", "client_app"],
        "apps.context": ["DATA", "PARTITION", "alone", "local_context", "participant"],
        "apps.knowledge_fusion": ["KnowledgeFusion"],
        "apps.node_state": ["newest_state"],
        "apps.server_app": ["WAITS", "ServerContext", "server_app"],
        "checkpoint": ["CheckpointStore", "SavedClient"],
        "compat": [
            "RUN_ID",
            "Run",
            "assume_identity",
            "client_of",
            "flower_logs_from",
            "give_id",
            "node_id_of",
            "with_content",
        ],
        "flower_averaging": ["WEIGHTS"],
        "flower_strategies": ["flower_hyperparameters", "flower_strategy_names"],
        "messages.arrays": ["from_record", "to_record"],
        "run_control": ["RunControl"],
    },
)
