"""The Flower apps: ClientApp, ServerApp, the message layout, client state and checkpoints."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [],
    {
        "apps.client_app": ["answer_batch", "client_app"],
        "apps.context": [
            "DATA_KEY",
            "PARTITION_KEY",
            "client_behind",
            "load_participant",
            "local_context",
            "with_loop_executor",
        ],
        "apps.knowledge_fusion": ["KnowledgeFusion"],
        "apps.node_state": ["newest_state"],
        "apps.server_app": ["WAIT_DEFAULTS", "ServerContext", "server_app"],
        "checkpoint": ["CheckpointStore", "SavedClient"],
        "compat": [
            "RUN_ID",
            "Run",
            "assign_message_id",
            "assume_identity",
            "client_of_node",
            "flower_logs_from",
            "node_id_of",
            "replace_content",
        ],
        "flower_averaging": ["WEIGHTS_PREFIX"],
        "flower_strategies": ["flower_hyperparameters", "flower_outlines"],
        "messages.arrays": ["arrays_to_record", "record_to_arrays"],
        "replay": ["replay_uploads"],
        "run_control": ["RunControl"],
    },
)
