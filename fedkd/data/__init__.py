"""Arrays in, client shards out: data sets, partitions, the transfer set."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [],
    {
        "dataset": ["dataset_from_arrays"],
        "federated": ["ClientData", "FederatedData"],
        "heterogeneity": ["Skew", "replace_labels"],
        "kinds": ["KINDS", "SampleKind", "inferred_kind"],
        "load": ["Data", "first_task", "load_data", "task_names"],
        "memory_budget": ["check_memory_budget", "machine_memory"],
        "normalise": ["Statistics"],
        "partitions.replacement": ["REPLACEMENT_SCHEMES"],
        "partitions.stratified": ["stratified_choice"],
        "registry": ["DATASETS", "PARTITIONS"],
        "request": ["ProgressCallback", "data_root_folder", "user_cache_folder"],
        "shares.share": ["Share", "share_of_client", "share_of_samples", "share_of_server"],
        "shares.share_file": ["SHARE_MANIFEST", "read_share", "write_share"],
        "sources.table_file": ["MAX_CATEGORIES", "clean_column", "read_table_file", "whole_numbers"],
        "streams.pixels": ["Permutation", "Rotation", "Transform"],
        "streams.stream": ["FederatedStream"],
        "streams.task": ["Task"],
        "targets": ["LOG_VARIANCE", "Head", "TargetScale", "join_outputs", "split_outputs"],
    },
)
